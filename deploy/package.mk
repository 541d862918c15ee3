# What is made of the programs: man pages and completions, the Debian package, the container image; the Makefile
# includes it. docs/packaging.md tells about each.

# The last release that builds without modules that not every proxy serves; newer ones add formats that are not made here.
NFPM_VERSION := v2.45.2
NFPM := bin/tools/nfpm-$(NFPM_VERSION)

# For which the package and the image are built; `make deb GOARCH=arm64`.
GOARCH ?= $(shell $(GO) env GOARCH)
PROGRAMS := bin/pkg/$(GOARCH)
DEB_VERSION ?= $(shell deploy/debian/version)
MAINTAINER ?= Warren maintainers <warren-net@users.noreply.github.com>
DEB_DIR ?= bin/
IMAGE ?= localhost/warren:$(subst +,-,$(subst ~,-,$(DEB_VERSION)))

# The same sources make the same files: what has a date in it gets that of the commit.
EPOCH := $(shell git log -1 --format=%ct 2>/dev/null || date +%s)
dist-files deb image: export SOURCE_DATE_EPOCH ?= $(EPOCH)
dist-files deb: export DEB_VERSION := $(DEB_VERSION)
dist-files deb: export MAINTAINER := $(MAINTAINER)

.PHONY: dist-files
dist-files: need-go ## Man pages, completions, the unit and notices of a package, into bin/dist
	@rm -rf bin/dist && mkdir -p bin/dist/{man5,man8,doc,systemd}
	GOARCH= $(GO) run -buildvcs=false ./internal/cli/distfiles -version '$(DEB_VERSION)' bin/dist
	@for page in bin/dist/man/*; do gzip -9nc "$$page" >bin/dist/man"$${page##*.}/$${page##*/}".gz; done
	@sed 's|/usr/local/bin/|/usr/bin/|' deploy/systemd/warren.service >bin/dist/systemd/warren.service
	@GO='$(GO)' deploy/notices >bin/dist/notices
	@gzip -9nc bin/dist/notices >bin/dist/doc/third-party-notices.gz
	@gzip -9nc CHANGELOG.md >bin/dist/doc/changelog.gz
	@deploy/debian/changelog | gzip -9nc >bin/dist/doc/changelog.Debian.gz

.PHONY: programs
programs: need-go
	@mkdir -p $(PROGRAMS)
	GOARCH=$(GOARCH) $(BUILD) -o $(PROGRAMS)/ ./cmd/...

.PHONY: deb
deb: dist-files programs $(NFPM) ## The Debian package, into bin; GOARCH=arm64 for another machine
	@GOARCH=$(GOARCH) PROGRAMS=$(PROGRAMS) $(NFPM) package -f deploy/debian/nfpm.yaml -p deb -t $(DEB_DIR)

$(NFPM): | need-go
	@mkdir -p bin/tools
	@echo "building nfpm $(NFPM_VERSION) (once)"
	@GOARCH= GOBIN=$(CURDIR)/bin/tools $(GO) install github.com/goreleaser/nfpm/v2/cmd/nfpm@$(NFPM_VERSION)
	@mv bin/tools/nfpm $@

# The package is built twice, as versions that follow each other, and installed by the real dpkg, in namespaces.
.PHONY: test-package
test-package: TOOLS := lintian:lintian man:man-db dpkg-deb:dpkg unshare:util-linux
test-package: need-root deps ## The Debian package: lintian, and installed, upgraded, removed and purged in a copy of /
	@rm -rf bin/test-package && mkdir -p bin/test-package/{this,next}
	@$(MAKE) deb DEB_VERSION='$(DEB_VERSION)' DEB_DIR=bin/test-package/this/
	@$(MAKE) deb DEB_VERSION='$(DEB_VERSION)+next' DEB_DIR=bin/test-package/next/
	lintian --allow-root --fail-on error,warning bin/test-package/*/*.deb
	deploy/debian/test bin/test-package/this/*.deb bin/test-package/next/*.deb

IMAGE_ARCHIVE ?= bin/warren-image.tar

# All that is in the image. Beside each other warren finds warren-cni.
.PHONY: image-files
image-files: programs
	@rm -rf bin/image && mkdir -p bin/image/licenses
	@cp $(PROGRAMS)/warren $(PROGRAMS)/warren-cni bin/image/
	@cp LICENSE bin/image/licenses/
	@GO='$(GO)' deploy/notices >bin/image/licenses/third-party-notices
	@chmod -R u=rwX,go=rX bin/image

# buildah keeps nothing on this machine but the archive.
.PHONY: image
image: TOOLS := buildah:buildah
image: deps image-files ## The container image as an OCI archive, bin/warren-image.tar; no registry is asked
	@work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; \
	buildah --root "$$work/root" --runroot "$$work/run" --storage-driver vfs build --quiet --isolation chroot \
		--target prebuilt --platform linux/$(GOARCH) --timestamp "$$SOURCE_DATE_EPOCH" --format oci \
		--build-arg VERSION='$(DEB_VERSION)' --build-arg REVISION="$$(git rev-parse HEAD 2>/dev/null || echo unknown)" \
		--tag oci:"$$work/oci":$(IMAGE) -f deploy/container/Containerfile bin/image >/dev/null; \
	tar --sort=name --mtime="@$$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX \
		-cf $(IMAGE_ARCHIVE) -C "$$work/oci" .
	@ls -l $(IMAGE_ARCHIVE)

.PHONY: test-image
test-image: TOOLS := jq:jq readelf:binutils setpriv:util-linux unshare:util-linux
test-image: need-root deps image ## The image: what is in it, and as a node's init container, in namespaces
	deploy/container/test $(IMAGE_ARCHIVE)
