#!/usr/bin/env bash
# PyTorch 2.13.0: `torch.set_flush_denormal` sets one thread's mode, so that equal rows of one batch may
# come out unequal, and switching it off may leave half of it on.
#
# One would guess that it is a setting of the process: that after True every number too small for full
#   precision counts as zero, after False none does, and no other library is touched. (The other guess,
#   that a thread begun later has it off, is wrong too.)
# What happens: the mode is a bit in the processor's control register, one for each thread, which a
#   thread takes over from the one that starts it.
#   - True after the first operation that was shared among threads: only the calling thread's part of
#     later operations is flushed. A fading state, h <- h / 2 from 1, is exactly 0 after 140 steps in the
#     first rows of a batch, and 2^-140 in the others.
#   - True before it, and then False: the other threads go on flushing. Now the first rows are 2^-140.
#   - NumPy flushes in that thread with it, as does a Python thread that it starts.
# Where: ATen's setFlushDenormal sets the register of the thread that calls it; OpenMP starts the others
#   at the first operation that is large enough, and keeps them.
# For whoever runs state space models on CPUs: states and gradients that fade are where such numbers come
#   from and why one wants them flushed, for speed. Call it before anything else, or limit PyTorch to
#   one thread while it is on; a result may otherwise depend on a row's place in the batch, and on what
#   was computed before.
#
# Needs a build of PyTorch for x86-64; an index may serve the one for CUDA, a larger download.
# Seen 2026-11-29, Python 3.11, Linux x86-64:
#   torch 2.13.0+cpu | numpy 2.4.6
#   shared work first, then set_flush_denormal(True):
#     before: 4096 of 4096 rows are not zero, the first is kept
#     True: 2048 of 4096 rows are not zero, the first is zero
#     NumPy flushes: True, and in a new thread: True
#     False: 4096 of 4096 rows are not zero, the first is kept
#   set_flush_denormal(True) first, then shared work:
#     True: 0 of 4096 rows are not zero, the first is zero
#     False: 2048 of 4096 rows are not zero, the first is kept
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat >"$dir/show.py" <<'PY'
import sys
import threading

import numpy as np
import torch

ROWS, WIDTH, STEPS = 4096, 64, 140
LEFT = 1 << 149 - STEPS  # the bits of 2^-140 as float32: a whole multiple of 2^-149
torch.set_num_threads(2)


def fade():
    """Fade a state, and count the rows that are still there; every row is computed alike."""
    state = torch.ones(ROWS, WIDTH)
    for _ in range(STEPS):
        state *= 0.5
    bits = state.view(torch.int32)  # a comparison of floats would flush, too
    kept = (bits == LEFT).all(1)
    assert torch.equal(~kept, (bits == 0).all(1))
    return int(kept.sum()), bool(kept[0])


def numpy_flushes():
    return bool(np.float32(2.0**-100) * np.float32(2.0**-40) == 0)


def told(what, kept):
    first = "kept" if kept[1] else "zero"
    print(f"  {what}: {kept[0]} of {ROWS} rows are not zero, the first is {first}")
    return kept


if sys.argv[1] == "late":
    print("torch", torch.__version__, "| numpy", np.__version__)
    print("shared work first, then set_flush_denormal(True):")
    assert told("before", fade()) == (ROWS, True)
    assert not numpy_flushes() and torch.set_flush_denormal(True)
    kept, first = told("True", fade())
    assert 0 < kept < ROWS and not first
    seen = []
    thread = threading.Thread(target=lambda: seen.append(numpy_flushes()))
    thread.start()
    thread.join()
    print(f"  NumPy flushes: {numpy_flushes()}, and in a new thread: {seen[0]}")
    assert numpy_flushes() and seen == [True]
    torch.set_flush_denormal(False)
    assert told("False", fade()) == (ROWS, True)
else:
    print("set_flush_denormal(True) first, then shared work:")
    assert torch.set_flush_denormal(True)
    assert told("True", fade()) == (0, False)
    torch.set_flush_denormal(False)
    kept, first = told("False", fade())
    assert 0 < kept < ROWS and first
PY
for order in late early; do
    env -u OMP_THREAD_LIMIT -u OMP_DYNAMIC OMP_NUM_THREADS=2 \
        "$dir/venv/bin/python" -I "$dir/show.py" "$order"
done
