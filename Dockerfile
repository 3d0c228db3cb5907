# mtlops with all that its steps need, and nothing of what built it. `make image` builds it.
#
#   --target cpu | gpu       the ONNX runtime; `cpu` refuses a CUDA build of torch   (default: cpu)
#   --build-arg BASE         an image with Python 3.11 to 3.13 and its venv module   (default: python:3.11-slim)
#   --build-arg TORCH_INDEX  the package index for torch alone, for a CPU or a certain CUDA build
#   --build-arg REVISION     the commit that it is made from; a label
#   --build-arg PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, PIP_CERT         pip's settings, for the build only
#
# It runs as user 10001 or any other, on a read-only root file system. What it writes for itself (home, caches,
# temporary files) goes to /tmp, the one folder that must be writable. Commands start in /work: mount a project there.

ARG BASE=python:3.11-slim

FROM ${BASE} AS environment
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_CERT
ENV PIP_INDEX_URL=$PIP_INDEX_URL PIP_EXTRA_INDEX_URL=$PIP_EXTRA_INDEX_URL PIP_FIND_LINKS=$PIP_FIND_LINKS \
    PIP_CERT=$PIP_CERT PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=/source/constraints.txt
WORKDIR /source
COPY constraints.txt ./
RUN python3 -m venv /tools && /tools/bin/python -m pip install --quiet pip cyclonedx-bom
RUN python3 -m venv /venv && /venv/bin/python -m pip install --quiet pip setuptools
# Alone and without their dependencies: torch, which may have an index of its own, and kfp, of which a step needs
# nothing but the module that calls it.
ARG TORCH_INDEX
RUN /venv/bin/pip install --no-compile --no-deps ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch \
 && /venv/bin/pip install --no-compile --no-deps kfp
COPY pyproject.toml ./
RUN for target in cpu gpu; do /venv/bin/python -c "import sys, tomllib; \
    project = tomllib.load(open('pyproject.toml', 'rb'))['project']; extras = project['optional-dependencies']; \
    print(*project['dependencies'], *(line for name in sys.argv[1:] for line in extras[name]), 'dvc', sep='\n')" \
    $target train serve monitor > $target.txt || exit; done

FROM environment AS packages-cpu
RUN grep -q '^cuda.* = None' /venv/lib/python3*/site-packages/torch/version.py || { \
    echo "This is a CUDA build of torch: give TORCH_INDEX=URL with PyTorch's CPU index, or build the target gpu." >&2; \
    exit 1; }
RUN /venv/bin/pip install --no-compile --requirement cpu.txt
# Other packages' tests, torch's C++ headers and test programs; bytecode that no file's date can make stale.
RUN find /venv/lib -depth '(' -type d -name tests -o -path '*/torch/include' -o -path '*/torch/test' \
    -o -path '*/torch/bin/*[Tt]est*' ')' -exec rm -rf {} + \
 && /venv/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash -x torch/testing/_internal /venv/lib

FROM environment AS packages-gpu
RUN /venv/bin/pip install --no-compile --requirement gpu.txt
RUN find /venv/lib -depth '(' -type d -name tests -o -path '*/torch/include' -o -path '*/torch/test' \
    -o -path '*/torch/bin/*[Tt]est*' ')' -exec rm -rf {} + \
 && /venv/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash -x torch/testing/_internal /venv/lib

# The project's own files, to be laid over /venv.
FROM environment AS code
COPY LICENSE README.md ./
COPY mtlops ./mtlops
RUN /venv/bin/pip install --no-compile --no-deps --no-build-isolation --prefix /code . \
 && /venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /code

FROM packages-cpu AS sbom-cpu
COPY --from=code /code/ /venv/
RUN /tools/bin/cyclonedx-py environment --output-reproducible --output-file /sbom.cdx.json /venv

FROM packages-gpu AS sbom-gpu
COPY --from=code /code/ /venv/
RUN /tools/bin/cyclonedx-py environment --output-reproducible --output-file /sbom.cdx.json /venv

# No RUN from here on: a build's mounts would leave traces.
FROM ${BASE} AS runtime
ENV PATH=/venv/bin:$PATH PYTHONPATH=/app HOME=/tmp TMPDIR=/tmp USER=mtlops LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
WORKDIR /work
USER 10001:10001
# For `mtlops serve`; the steps never answer here, and who runs them switches it off.
HEALTHCHECK --start-period=60s --interval=10s --timeout=5s CMD ["python", "-c", \
    "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/v2/health/ready', timeout=4)"]
# No ENTRYPOINT: Kubeflow's command for a step and `mtlops predict ...` both run as they are written.
CMD ["mtlops", "--help"]
# `make image` adds the version and the source, and the revision once more: buildah may keep an older one.
ARG REVISION=unknown
LABEL org.opencontainers.image.title=mtlops \
      org.opencontainers.image.licenses=Apache-2.0 \
      org.opencontainers.image.revision=$REVISION

# `python -m monitoring` is no part of the wheel.
COPY monitoring /app/monitoring

FROM runtime AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=packages-gpu /venv /venv
COPY --from=sbom-gpu /sbom.cdx.json /venv/share/
COPY --from=code /code/ /venv/

FROM runtime AS cpu
COPY --from=packages-cpu /venv /venv
COPY --from=sbom-cpu /sbom.cdx.json /venv/share/
COPY --from=code /code/ /venv/
