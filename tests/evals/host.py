"""One of two processes that encode together; what `test_many_hosts` starts.

python host.py INDEX PORT CHECKPOINT DATA OUT
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np


def main(index: str, port: str, checkpoint: str, data: str, out: str) -> None:
    jax.distributed.initialize(f"localhost:{port}", 2, int(index))
    from evals import encode, models
    from evals.benchmark import ImageRef
    from evals.images import DataRoots
    from negclip_jax.errors import InputError

    encode.IMAGES_PER_DEVICE = encode.TEXTS_PER_DEVICE = 1  # batches of four
    model, cache = models.load(checkpoint), Path(out, f"cache{index}")
    refs = [*(ImageRef(f"{i}.png") for i in range(7)), ImageRef("bad.png")]
    texts = [f"no {'x' * i}" for i in range(9)]

    def encoder() -> encode.Encoder:
        return encode.Encoder(model, refs, texts, DataRoots((Path(data),)), cache=cache)

    first = encoder()
    rows = first.features(refs[:7], texts)
    message = ""
    try:
        first.features(refs, texts)
    except InputError as error:
        message = str(error)
    np.save(Path(out, f"{index}.npy"), np.concatenate(rows))
    found = {"message": message, "pending": encoder().pending}
    Path(out, f"{index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
