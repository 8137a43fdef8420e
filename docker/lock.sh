#!/bin/sh
# Writes docker/locks/*.txt: one lock per flavor in docker/flavors, and those of the tools (dev, uv).
# What is not torch's is resolved once for all of them, so that two locks differ only in torch and what torch brings.
# Versions already locked stay until they must change: `docker/lock.sh --upgrade` takes the newest.
# UV names the uv to use; indexes come from its own settings and never reach a lock.
set -eu
cd "$(dirname "$0")/.."
uv=${UV:-uv}
locks=docker/locks
work=.cache/lock # all locks are complete before the first is replaced
mkdir -p "$work"
python=$(sed -n 's/^requires-python = "==\(.*\)\.\*"$/\1/p' pyproject.toml)
flavors=$(sed -n 's/^FLAVOR=//p' docker/flavors/*.env)
pin() { sed -n "s/^$2=//p" "docker/flavors/$1.env"; }

# compile MACHINE LOCK ARGUMENT...
compile() {
    machine=$1 output=$work/$2.txt
    shift 2
    "$uv" pip compile --quiet --generate-hashes --no-emit-index-url --python-version "$python" \
        --python-platform "$machine-manylinux_2_28" --custom-compile-command 'make lock' \
        --output-file "$output" "$@" >/dev/null
    # Only who asked for a package is of interest, one per line: not which constraint held it, nor what was left out.
    sed -i -e '/^ *#   -c /d' -e '/^# The following packages were excluded/,$d' -e '/^$/d' \
        -e 's/^    # via \([a-z0-9-]*\)$/    # via\n    #   \1/' "$output"
}

for name in $flavors dev uv; do
    : >"$work/$name.txt" # uv prefers the versions that it finds in its output file
    if [ -e "$locks/$name.txt" ]; then cp "$locks/$name.txt" "$work/$name.txt"; fi
done

first=$(sed -n 's/^MACHINES=//p' docker/flavors/*.env | head -n 1 | cut -d ' ' -f 1)
echo torch >"$work/torch.txt"
cat "$locks"/*.txt >"$work/shared.txt"
compile "$first" shared pyproject.toml --group dev --excludes "$work/torch.txt" "$@"
compile "$first" dev --group dev --constraints "$work/shared.txt"
compile "$first" uv --group bootstrap "$@"

for name in $flavors; do
    [ -z "$(pin "$name" LOCK_FROM)" ] || continue
    printf '%s\n' "torch==$(pin "$name" TORCH_VERSION)" >"$work/$name.constraints.txt"
    for constraint in $(pin "$name" LOCK_CONSTRAINTS); do
        echo "$constraint" >>"$work/$name.constraints.txt"
    done
    before=
    for machine in $(pin "$name" MACHINES); do
        compile "$machine" "$name" pyproject.toml --constraints "$work/shared.txt" \
            --constraints "$work/$name.constraints.txt" "$@"
        [ -z "$before" ] || cmp "$before" "$work/$name.txt" || {
            echo "error: $name resolves differently on $machine" >&2
            exit 1
        }
        before=$work/$name.$machine.txt
        cp "$work/$name.txt" "$before"
    done
done

# These are another flavor's lock without what only CUDA needs, and with a torch for which no index is asked.
for name in $flavors; do
    from=$(pin "$name" LOCK_FROM)
    [ -n "$from" ] || continue
    grep -oE "^($(pin "$name" LOCK_EXCLUDES))" "$work/$from.txt" >"$work/$name.excludes.txt"
    sed -i '/^torch==/,$d' "$work/$name.txt"
    compile "$(pin "$name" MACHINES | cut -d ' ' -f 1)" "$name" pyproject.toml --constraints "$work/$from.txt" \
        --excludes "$work/$name.excludes.txt" --no-emit-package torch
    printf 'torch==%s \\\n    --hash=sha256:%s\n' "$(pin "$name" TORCH_VERSION)" "$(pin "$name" TORCH_SHA256)" \
        >>"$work/$name.txt"
done

for name in $flavors dev uv; do
    mv "$work/$name.txt" "$locks/$name.txt"
done
