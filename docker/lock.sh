#!/bin/sh
# Writes docker/locks/*.txt. One resolution (the union) serves all of them, so that no two locks disagree.
# Versions already locked stay until they must change: `docker/lock.sh --upgrade` takes the newest.
# UV names the uv to use; indexes come from its own settings and never reach a lock.
set -eu
cd "$(dirname "$0")/.."
uv=${UV:-uv}
locks=docker/locks
work=.cache/lock # all four are whole before one is replaced
mkdir -p "$work"
for name in cu124 dev cpu uv; do
    touch "$locks/$name.txt"
    cp "$locks/$name.txt" "$work/$name.txt" # uv prefers the versions that it finds in its output file
done
cat "$locks/cu124.txt" "$locks/dev.txt" >"$work/union.txt"

compile() {
    output=$1
    shift
    "$uv" pip compile --quiet --generate-hashes --no-emit-index-url --python-version 3.11 \
        --python-platform x86_64-manylinux_2_28 --custom-compile-command 'make lock' \
        --output-file "$work/$output" "$@" >/dev/null
    # Which constraint held a version, and that torch is left out, says nothing to a reader.
    sed -i -e '/^ *#   -c /d' -e '/^# The following packages were excluded/,$d' -e '/^$/d' "$work/$output"
}

pin() { sed -n "s/^$1=//p" docker/flavors/cpu.env; }

compile union.txt pyproject.toml --group dev "$@"
compile cu124.txt pyproject.toml --constraints "$work/union.txt"
compile dev.txt --group dev --constraints "$work/union.txt"
compile uv.txt --group bootstrap "$@"

# cpu is cu124 without what only CUDA needs, and with PyTorch's own CPU wheel, for which no index is asked.
grep -oE '^(nvidia-[a-z0-9-]+-cu12|triton)' "$work/cu124.txt" >"$work/excludes.txt"
sed -i '/^torch==/,$d' "$work/cpu.txt"
compile cpu.txt pyproject.toml --constraints "$work/cu124.txt" --excludes "$work/excludes.txt" --no-emit-package torch
printf 'torch==%s \\\n    --hash=sha256:%s\n' "$(pin TORCH_VERSION)" "$(pin TORCH_SHA256)" >>"$work/cpu.txt"

for name in cu124 dev cpu uv; do
    mv "$work/$name.txt" "$locks/$name.txt"
done
