# syntax=docker/dockerfile:1

# Caddy with epd_proxy, built from this checkout. The paths are those of Caddy's own image: the configuration is
# /etc/caddy/Caddyfile, certificates are in /data.
FROM --platform=$BUILDPLATFORM golang:1.26-alpine AS build
WORKDIR /src
COPY . .
ARG TARGETOS TARGETARCH
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -ldflags="-s -w" -tags nobadger,nomysql,nopgx -o /out/usr/bin/caddy ./cmd/caddy && \
    mkdir -p /out/etc/caddy

# This stage has no RUN, so that an image for another architecture can be built without an emulator.
FROM alpine:3.23
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out /
# Empty directories; new volumes take their owner from them.
COPY --from=build --chown=65532:65532 /out/etc/caddy /config
COPY --from=build --chown=65532:65532 /out/etc/caddy /data
ENV XDG_CONFIG_HOME=/config XDG_DATA_HOME=/data
# A number, so that Kubernetes can check that the user is not root. This user may bind ports from 1024 on. Docker allows
# all ports, so 443 works too; for Kubernetes see examples/kubernetes.
USER 65532:65532
EXPOSE 8000 8443 8443/udp 9180
VOLUME ["/config", "/data"]
# Checks Caddy, not the engines: restarting the proxy does not repair an engine. The Caddyfile must have this route.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["wget", "-q", "-O", "/dev/null", "http://127.0.0.1:9180/livez"]
CMD ["caddy", "run", "--config", "/etc/caddy/Caddyfile"]
