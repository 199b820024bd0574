# Two images from one file:
#   docker build --target service -t ratchet-service .   (no torch: small, starts at once)
#   docker build --target worker  -t ratchet-worker  .   (torch, transformers, peft)
FROM python:3.11-slim AS base
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
RUN useradd --create-home --uid 10001 ratchet \
    && mkdir -p /data /sources /checkpoints /models \
    && chown ratchet /data /sources /checkpoints /models
ENV RATCHET_DATA=/data \
    RATCHET_SOURCES=/sources \
    RATCHET_CHECKPOINTS=/checkpoints \
    RATCHET_MODELS=/models
WORKDIR /build
COPY pyproject.toml constraints.txt README.md training.py training_resume.py ./
COPY core core
COPY jobs jobs
COPY worker worker
COPY service service
COPY client client

FROM base AS service
RUN pip install -c constraints.txt '.[parquet]'
# Away from the build folder, so that what runs is what was installed.
WORKDIR /home/ratchet
USER ratchet
ENV RATCHET_HOST=0.0.0.0
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/livez', timeout=2)"]
CMD ["python", "-m", "service"]

FROM base AS worker
RUN pip install -c constraints.txt '.[worker,parquet,gguf]'
WORKDIR /home/ratchet
USER ratchet
# A stop saves the run first; docker's ten seconds are not always enough (compose gives thirty).
STOPSIGNAL SIGTERM
CMD ["python", "-m", "worker"]
