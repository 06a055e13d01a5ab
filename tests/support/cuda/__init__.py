"""A CUDA device in host memory, the preprocessing kernel as plain C++, and the cases that both must agree on."""
