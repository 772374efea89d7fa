# The worker, without torch. Build from the repository: docker build -f docker/worker.Dockerfile .
FROM python:3.11-slim AS build
RUN python -m venv /opt/shelfcast
WORKDIR /src
COPY . .
RUN /opt/shelfcast/bin/pip install --no-cache-dir .

FROM python:3.11-slim
RUN useradd --create-home --uid 10001 shelfcast
COPY --from=build /opt/shelfcast /opt/shelfcast
ENV PATH=/opt/shelfcast/bin:$PATH \
    PYTHONUNBUFFERED=1
USER 10001
WORKDIR /home/shelfcast
EXPOSE 6066
ENTRYPOINT ["shelfcast"]
CMD ["worker"]
