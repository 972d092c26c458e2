"""Writes ``constants.pb``: a small graph of TensorFlow, frozen, with what it holds.

Needs tensorflow, which the test does not: ``python make_graph_def.py``.
"""

from pathlib import Path

import numpy as np
import tensorflow as tf

if __name__ == "__main__":
    graph = tf.Graph()
    with graph.as_default():
        ramp = np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 8 - 1
        kernel = tf.constant(ramp, name="conv/conv2d_params")
        same = tf.constant(0.5, shape=(5,), name="conv/gamma")  # stored once
        tf.constant(np.float32(2.5), name="scalar")
        tf.constant(np.arange(3), name="whole_numbers")
        tf.constant("a string", name="text")
        tf.add(tf.reduce_sum(kernel), tf.reduce_sum(same), name="sum")
    path = Path(__file__).parent / "constants.pb"
    path.write_bytes(graph.as_graph_def().SerializeToString())
