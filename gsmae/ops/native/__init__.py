"""The compiled kernels of csrc/ under the names of gsmae.ops.reference, for float32 tensors on the CPU."""
