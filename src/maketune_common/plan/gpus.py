"""NVIDIA GPUs by name: memory, bandwidth, dense rates, capability, power. Standard library alone, Python 3.8.
 Rates are dense (datasheets often print twice that, for 2:4 sparsity) and with fp32 accumulation, which training uses
(GeForce cards before Blackwell also print twice that, for fp16 accumulation). Before capability 8.0 there is no bf16;
before 7.0 there are no tensor cores, and fp16 is computed at fp32's rate. Memory is what programs get: where ECC keeps
its bits in the memory itself (T4, L4, A10, ...) a sixteenth less than the datasheet's. Boards of other makers differ by
some percent.
"""

import difflib
import re
from dataclasses import dataclass
from typing import List, Optional

SOURCES = {
    "pascal": "NVIDIA Tesla P100 whitepaper; product pages of the GTX 10 series, P40 and P4: 2 x cores x boost clock",
    "volta": "NVIDIA V100 datasheet (2020)",
    "turing": "NVIDIA Turing architecture whitepaper, appendix A (reference boards); T4 datasheet",
    "ga100": "NVIDIA A100 datasheet (2021); A30 datasheet",
    "ga102": "NVIDIA GA102 architecture whitepaper v2, appendix A; GeForce: 2 x cores x boost, tensor cores 2x",
    "ampere-pro": "NVIDIA datasheets of A2, A10, A40, RTX A4000, A5000, A6000; A10G by AWS's G5 page",
    "ada": "NVIDIA Ada architecture whitepaper v2.1, appendix A; GeForce: 2 x cores x boost, tensor cores 2x",
    "ada-pro": "NVIDIA datasheets of L4, L40, L40S and the RTX Ada Generation, sparse figures halved",
    "hopper": "NVIDIA H100 (2023), H200 (2024) and GH200 datasheets, sparse figures halved",
    "blackwell": "NVIDIA RTX Blackwell architecture whitepaper, appendix A; B200 by the HGX datasheet, sparse halved",
}

# name | memory GiB | bandwidth GB/s | dense bf16, fp16, fp32 TFLOP/s | compute capability | board power W | source
TABLE = """
GTX 1060 6GB            | 6    | 192  | -     | 4.4   | 4.4   | 6.1  | 120  | pascal
GTX 1070                | 8    | 256  | -     | 6.5   | 6.5   | 6.1  | 150  | pascal
GTX 1070 Ti             | 8    | 256  | -     | 8.2   | 8.2   | 6.1  | 180  | pascal
GTX 1080                | 8    | 320  | -     | 8.9   | 8.9   | 6.1  | 180  | pascal
GTX 1080 Ti             | 11   | 484  | -     | 11.3  | 11.3  | 6.1  | 250  | pascal
Tesla P4                | 7.5  | 192  | -     | 5.5   | 5.5   | 6.1  | 75   | pascal
Tesla P40               | 22.5 | 346  | -     | 11.8  | 11.8  | 6.1  | 250  | pascal
Tesla P100 PCIe 16GB    | 16   | 732  | -     | 9.3   | 9.3   | 6.0  | 250  | pascal
Tesla P100 SXM2 16GB    | 16   | 732  | -     | 10.6  | 10.6  | 6.0  | 300  | pascal
Tesla V100 PCIe 16GB    | 16   | 900  | -     | 112   | 14    | 7.0  | 250  | volta
Tesla V100 PCIe 32GB    | 32   | 900  | -     | 112   | 14    | 7.0  | 250  | volta
Tesla V100 SXM2 16GB    | 16   | 900  | -     | 125   | 15.7  | 7.0  | 300  | volta
Tesla V100 SXM2 32GB    | 32   | 900  | -     | 125   | 15.7  | 7.0  | 300  | volta
Tesla T4                | 15   | 320  | -     | 65    | 8.1   | 7.5  | 70   | turing
RTX 2060                | 6    | 336  | -     | 25.8  | 6.5   | 7.5  | 160  | turing
RTX 2070                | 8    | 448  | -     | 29.9  | 7.5   | 7.5  | 175  | turing
RTX 2080                | 8    | 448  | -     | 40.3  | 10.1  | 7.5  | 215  | turing
RTX 2080 Ti             | 11   | 616  | -     | 53.8  | 13.4  | 7.5  | 250  | turing
TITAN RTX               | 24   | 672  | -     | 130.5 | 16.3  | 7.5  | 280  | turing
Quadro RTX 6000         | 24   | 672  | -     | 130.5 | 16.3  | 7.5  | 295  | turing
Quadro RTX 8000         | 48   | 672  | -     | 130.5 | 16.3  | 7.5  | 295  | turing
A30                     | 24   | 933  | 165   | 165   | 10.3  | 8.0  | 165  | ga100
A100 PCIe 40GB          | 40   | 1555 | 312   | 312   | 19.5  | 8.0  | 250  | ga100
A100 SXM4 40GB          | 40   | 1555 | 312   | 312   | 19.5  | 8.0  | 400  | ga100
A100 PCIe 80GB          | 80   | 1935 | 312   | 312   | 19.5  | 8.0  | 300  | ga100
A100 SXM4 80GB          | 80   | 2039 | 312   | 312   | 19.5  | 8.0  | 400  | ga100
RTX 3060                | 12   | 360  | 25.5  | 25.5  | 12.7  | 8.6  | 170  | ga102
RTX 3060 Ti             | 8    | 448  | 32.4  | 32.4  | 16.2  | 8.6  | 200  | ga102
RTX 3070                | 8    | 448  | 40.6  | 40.6  | 20.3  | 8.6  | 220  | ga102
RTX 3070 Ti             | 8    | 608  | 43.5  | 43.5  | 21.7  | 8.6  | 290  | ga102
RTX 3080                | 10   | 760  | 59.5  | 59.5  | 29.8  | 8.6  | 320  | ga102
RTX 3080 Ti             | 12   | 912  | 68.2  | 68.2  | 34.1  | 8.6  | 350  | ga102
RTX 3090                | 24   | 936  | 71    | 71    | 35.6  | 8.6  | 350  | ga102
RTX 3090 Ti             | 24   | 1008 | 80    | 80    | 40    | 8.6  | 450  | ga102
A2                      | 15   | 200  | 18    | 18    | 4.5   | 8.6  | 60   | ampere-pro
A10                     | 22.5 | 600  | 125   | 125   | 31.2  | 8.6  | 150  | ampere-pro
A10G                    | 22.5 | 600  | 70    | 70    | 35    | 8.6  | 300  | ampere-pro
A40                     | 45   | 696  | 149.7 | 149.7 | 37.4  | 8.6  | 300  | ampere-pro
RTX A4000               | 16   | 448  | 76.7  | 76.7  | 19.2  | 8.6  | 140  | ampere-pro
RTX A5000               | 24   | 768  | 111.1 | 111.1 | 27.8  | 8.6  | 230  | ampere-pro
RTX A6000               | 48   | 768  | 154.8 | 154.8 | 38.7  | 8.6  | 300  | ampere-pro
RTX 4060                | 8    | 272  | 30.2  | 30.2  | 15.1  | 8.9  | 115  | ada
RTX 4060 Ti             | 8    | 288  | 44.1  | 44.1  | 22.1  | 8.9  | 160  | ada
RTX 4060 Ti 16GB        | 16   | 288  | 44.1  | 44.1  | 22.1  | 8.9  | 165  | ada
RTX 4070                | 12   | 504  | 58.3  | 58.3  | 29.1  | 8.9  | 200  | ada
RTX 4070 SUPER          | 12   | 504  | 71    | 71    | 35.5  | 8.9  | 220  | ada
RTX 4070 Ti             | 12   | 504  | 80.2  | 80.2  | 40.1  | 8.9  | 285  | ada
RTX 4070 Ti SUPER       | 16   | 672  | 88.2  | 88.2  | 44.1  | 8.9  | 285  | ada
RTX 4080                | 16   | 717  | 97.5  | 97.5  | 48.7  | 8.9  | 320  | ada
RTX 4080 SUPER          | 16   | 736  | 104.4 | 104.4 | 52.2  | 8.9  | 320  | ada
RTX 4090                | 24   | 1008 | 165.2 | 165.2 | 82.6  | 8.9  | 450  | ada
L4                      | 22.5 | 300  | 121   | 121   | 30.3  | 8.9  | 72   | ada-pro
L40                     | 45   | 864  | 181   | 181   | 90.5  | 8.9  | 300  | ada-pro
L40S                    | 45   | 864  | 362   | 362   | 91.6  | 8.9  | 350  | ada-pro
RTX 5000 Ada            | 32   | 576  | 261.1 | 261.1 | 65.3  | 8.9  | 250  | ada-pro
RTX 6000 Ada            | 48   | 960  | 364.2 | 364.2 | 91.1  | 8.9  | 300  | ada-pro
H100 PCIe               | 80   | 2039 | 756   | 756   | 51    | 9.0  | 350  | hopper
H100 NVL                | 94   | 3900 | 835   | 835   | 60    | 9.0  | 400  | hopper
H100 SXM5 80GB          | 80   | 3350 | 989   | 989   | 67    | 9.0  | 700  | hopper
H200                    | 140  | 4800 | 989   | 989   | 67    | 9.0  | 700  | hopper
GH200 480GB             | 96   | 4000 | 989   | 989   | 67    | 9.0  | 700  | hopper
RTX 5070                | 12   | 672  | 61.7  | 61.7  | 30.9  | 12.0 | 250  | blackwell
RTX 5070 Ti             | 16   | 896  | 87.9  | 87.9  | 43.9  | 12.0 | 300  | blackwell
RTX 5080                | 16   | 960  | 112.6 | 112.6 | 56.3  | 12.0 | 360  | blackwell
RTX 5090                | 32   | 1792 | 209.5 | 209.5 | 104.8 | 12.0 | 575  | blackwell
B200                    | 179  | 7700 | 2250  | 2250  | 75    | 10.0 | 1000 | blackwell
"""
ALIASES = {"h10080gbhbm3": "h100sxm580gb", "h100sxm": "h100sxm580gb", "a10080gbpcie": "a100pcie80gb"}
"""Other ways of writing, as `key` leaves them."""


@dataclass(frozen=True)
class Gpu:
    """A GPU: memory in bytes, bandwidth in bytes/s, rates in FLOP/s (0 where it has none), board power in watts."""

    name: str
    memory: float
    bandwidth: float
    bf16: float
    fp16: float
    fp32: float
    capability: str
    watts: float
    source: str


def _row(line: str) -> Gpu:
    name, *cells, capability, watts, source = (cell.strip() for cell in line.split("|"))
    memory, bandwidth, *rates = (0.0 if cell == "-" else float(cell) for cell in cells)
    bf16, fp16, fp32 = (rate * 1e12 for rate in rates)
    return Gpu(name, memory * 2**30, bandwidth * 1e9, bf16, fp16, fp32, capability, float(watts), SOURCES[source])


GPUS = [_row(line) for line in TABLE.strip().splitlines()]


def key(name: str) -> str:
    """A name without maker, brand, spaces and dashes: nvidia-smi's, a shop's and a user's way of writing it are one."""
    plain = re.sub(r"\b(nvidia|geforce|tesla|quadro|corporation|generation|gpu)\b|[^a-z0-9]", "", name.lower())
    return ALIASES.get(plain, plain)


def find(name: str) -> Optional[Gpu]:
    """The GPU of this name, as nvidia-smi or a shop writes it; None for one that the table does not have."""
    return next((gpu for gpu in GPUS if key(gpu.name) == key(name)), None)


def nearest(name: str, count: int = 4) -> List[str]:
    """Names in the table like this one, the likest first; none if nothing is."""
    wanted, known = key(name), {key(gpu.name): gpu.name for gpu in GPUS}
    starts = [each for each in known if wanted and each.startswith(wanted)]
    near = difflib.get_close_matches(wanted, list(known), count, 0.6)
    return [known[each] for each in dict.fromkeys([*starts, *near])][:count]
