"""Write a checkpoint of random weights in a chosen size, to time what the example is too small for.

    python benchmarks/synthetic.py big --hidden 2048 --layers 16
    python benchmarks/convert.py --source big …
    minitron convert big -o big.gguf && python benchmarks/quantize.py --model big.gguf …

It is a Nemotron with the tokenizer of examples/nano-nemotron; bfloat16, uniform weights. Its
answers mean nothing, its speed does.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "nano-nemotron"
TOKENIZER = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
HEAD = 128
BYTES = 2


def shapes_of(hidden: int, layers: int, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes; keys and values have a quarter of the heads, the FFN is 4 times."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        block = {
            "input_layernorm.weight": (hidden,),
            "input_layernorm.bias": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
            "post_attention_layernorm.bias": (hidden,),
            "self_attn.q_proj.weight": (hidden, hidden),
            "self_attn.k_proj.weight": (hidden // 4, hidden),
            "self_attn.v_proj.weight": (hidden // 4, hidden),
            "self_attn.o_proj.weight": (hidden, hidden),
            "mlp.up_proj.weight": (4 * hidden, hidden),
            "mlp.down_proj.weight": (hidden, 4 * hidden),
        }
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    final = {"model.norm.weight": (hidden,), "model.norm.bias": (hidden,)}
    return shapes | final | {"lm_head.weight": (vocabulary, hidden)}


def write_safetensors(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write random bfloat16 tensors, one at a time; uniform in ±1/√columns, norms around 0."""
    random = np.random.default_rng(1)
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + BYTES * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": (offset, end)}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for shape in shapes.values():
            values = random.random(shape, dtype=np.float32) * 2 - 1
            values /= np.sqrt(np.float32(shape[-1]))
            file.write((values.view(np.uint32) >> 16).astype("<u2").tobytes())


def main() -> int:
    """Write the folder that the first argument names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hidden", type=int, default=2048, help="a multiple of 512")
    parser.add_argument("--layers", type=int, default=16)
    arguments = parser.parse_args()
    if arguments.hidden % (4 * HEAD) or arguments.hidden < 1 or arguments.layers < 1:
        parser.error(f"--hidden is a multiple of {4 * HEAD}, --layers at least 1")
    config = json.loads((EXAMPLE / "config.json").read_text())
    shapes = shapes_of(arguments.hidden, arguments.layers, config["vocab_size"])
    config |= {
        "hidden_size": arguments.hidden,
        "intermediate_size": 4 * arguments.hidden,
        "num_hidden_layers": arguments.layers,
        "num_attention_heads": arguments.hidden // HEAD,
        "num_key_value_heads": arguments.hidden // HEAD // 4,
        "head_dim": HEAD,
    }
    arguments.folder.mkdir(parents=True, exist_ok=True)
    (arguments.folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in TOKENIZER:
        shutil.copy(EXAMPLE / name, arguments.folder / name)
    write_safetensors(arguments.folder / "model.safetensors", shapes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
