"""MDS scoring and buffers: which training volumes are closest to what M_0 was pre-trained on."""
