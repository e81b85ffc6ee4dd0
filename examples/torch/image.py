"""PyTorch on the CPU, on Debian's own Python.

onesec build examples/torch/image.py -t torch
onesec run torch
"""

from onesec import Image

image = (
    Image.debian_slim(python_version="3.11")
    .pip_install("torch==2.13.0", "numpy")
    .copy_local("app.py", "/app/app.py")
    .workdir("/app")
    .cmd("python3", "app.py")
)
