# The trainer: docker build -f docker/training.Dockerfile -t stepagent-training .
#
# A file of its own, since Docker's older builder makes every stage before the one that is asked for,
# and PyTorch takes gigabytes. It is the one that pip finds by itself, on Linux with an x86-64
# processor the one for CUDA; the build argument TORCH_INDEX names another index, such as PyTorch's
# own of CPU builds, which take a fifth of the space.

FROM python:3.12.8-slim-bookworm AS install
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /venv
COPY constraints.txt ./
RUN /venv/bin/python -m pip install -c constraints.txt pip setuptools wheel \
    && /venv/bin/python -m pip install -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch
COPY pyproject.toml setup.py README.md LICENSE ./
COPY stepagent stepagent
COPY envs envs
COPY agents agents
COPY eval eval
COPY training training
RUN /venv/bin/python -m pip install -c constraints.txt --no-build-isolation '.[train]' \
    && /venv/bin/stepagent install alfworld-data \
    && /venv/bin/python -m pip uninstall --yes pip setuptools wheel

FROM python:3.12.8-slim-bookworm
LABEL org.opencontainers.image.title="StepAgent training" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    STEPAGENT_CACHE=/cache \
    HF_HOME=/cache/huggingface
RUN groupadd --gid 10001 stepagent \
    && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin stepagent \
    && mkdir /cache /runs \
    && chown stepagent:stepagent /cache /runs
WORKDIR /runs
USER 10001:10001
ENTRYPOINT ["stepagent"]
CMD ["train", "--config", "demo", "--output", "/runs/demo"]
COPY --from=install /venv /venv
