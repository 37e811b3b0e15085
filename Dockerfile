# CUDA 12.6 runs on every driver that RunPod's Ampere, Ada and Hopper machines have. Blackwell (RTX 50xx, B200) needs
# --build-arg BASE_IMAGE=pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime
ARG BASE_IMAGE=pytorch/pytorch:2.13.0-cuda12.6-cudnn9-runtime
FROM ${BASE_IMAGE}

# An environment on top of the image's packages: pip finds the image's torch, which satisfies requirements.txt, and
# cannot replace it or conflict with the distribution's packages.
RUN python3 -m venv --system-site-packages --without-pip /opt/venv
ENV PATH=/opt/venv/bin:${PATH}

WORKDIR /app
COPY requirements.txt .
RUN python -m pip install --no-cache-dir -r requirements.txt \
    && python -c "import torch; assert torch.version.cuda, torch.__version__; \
assert not torch.__file__.startswith('/opt/venv'), 'pip replaced the torch of the image'"

COPY LICENSE handler.py test_input.json ./
COPY sd_core sd_core
COPY builder builder
COPY worker worker
COPY demo/weights demo/weights
RUN python -m compileall -q handler.py sd_core builder worker

ENV PYTHONUNBUFFERED=1 \
    LOG_LEVEL=INFO

CMD ["python", "-u", "handler.py"]
