# Triton with shelfcast's models. Build from the repository: docker build -f docker/triton.Dockerfile .
# Python 3.12, CUDA 13; runs on CPUs as well.
FROM nvcr.io/nvidia/tritonserver:25.10-py3
ENV PIP_BREAK_SYSTEM_PACKAGES=1 \
    PYTHONUNBUFFERED=1
COPY . /src
# The models import torch, transformers and shelfcast's own packages in the image's Python.
# hadolint ignore=DL3013
RUN python3 -m pip install --no-cache-dir '/src[train]'
COPY triton_models /models
# triton-server, the image's own unprivileged user
USER 1000
EXPOSE 8000 8001 8002
# A new version put beside the old one is loaded when the repository API is asked to, never by itself.
CMD ["tritonserver", "--model-repository=/models", "--model-control-mode=explicit", "--load-model=*", \
     "--disable-auto-complete-config", "--backend-config=python,stub-timeout-seconds=120"]
