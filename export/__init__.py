# SPDX-License-Identifier: Apache-2.0
"""From PyTorch models to ONNX graphs and TensorRT engines, and back again to check them.

`manifest` needs numpy alone; everything else imports torch on first use.
"""
