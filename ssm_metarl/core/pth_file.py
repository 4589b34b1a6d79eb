"""What a ``.pth`` file holds, read without running anything that it carries.

Place in the flow: stage 3, under `StateSpaceModel.load`; `pth_policy` says what such a model means.
"""

from __future__ import annotations

import os
import pickle
from typing import Any

import torch


def read_pth(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a ``.pth`` file without running anything that it carries.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Truncated, foreign, or holding anything but tensors and plain values.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: expected a .pth file, found none") from None
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path}: expected tensors and plain values only, received a file that asks to run "
            f"code or is not a PyTorch file; it was not loaded"
        ) from None
    except Exception as error:  # torch raises RuntimeError, EOFError, OSError, ... on damage
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path}: expected a PyTorch file, received a damaged one ({reason})"
        ) from None
    if not isinstance(content, dict) or not {"state_dict", "config"} <= content.keys():
        keys = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path}: expected keys 'state_dict' and 'config', received {keys}")
    for name in ("state_dict", "config"):
        if not isinstance(content[name], dict):
            raise ValueError(
                f"{path}: {name}: expected a dictionary, received {type(content[name]).__name__}"
            )
    return content
