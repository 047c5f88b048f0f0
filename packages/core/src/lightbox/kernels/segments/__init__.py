"""What the kernels of packed tokens share: `kernel` finds the segment and the rows that a program works on."""
