"""Parameters, multiply-adds, bytes and roofline times of traced programs."""
