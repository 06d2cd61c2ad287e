# Builds a static binary; the image holds it, the CA roots and a configuration, and nothing else.
FROM rust:1.95-alpine AS build
# hadolint ignore=DL3018
RUN apk add --no-cache build-base ca-certificates
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin forebay \
    && mkdir -p /image/etc/ssl/certs /image/etc/forebay /image/var/lib/forebay \
    && cp target/release/forebay /image/forebay \
    && cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ \
    && cp deploy/docker/forebay.yaml /image/etc/forebay/forebay.yaml

FROM scratch
COPY --from=build /image /
# A volume that is made from the image takes over the owner of this directory.
COPY --from=build --chown=65532:65532 /image/var/lib/forebay /var/lib/forebay
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 65532:65532
# What is acknowledged is kept here: without a named volume it goes with the container.
VOLUME /var/lib/forebay
EXPOSE 4317 4318 8888 13133
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["/forebay", "healthcheck"]
ENTRYPOINT ["/forebay"]
CMD ["run", "--config", "/etc/forebay/forebay.yaml", "--data-dir", "/var/lib/forebay"]
