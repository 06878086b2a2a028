# Every recipe calls the Go tool; .ci/run calls the same.
LINT = go tool -modfile=tools/go.mod golangci-lint

.PHONY: check test race lint fuzz cross foreign bench soak pictures
check: test race lint cross foreign

test:
	go test ./...

race:
	go test -race -shuffle=on -count=1 ./...

lint:
	$(LINT) run ./...

FUZZTIME ?= 20s
fuzz:
	.ci/fuzz $(FUZZTIME)

cross:
	for p in linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64; do \
		echo $$p; GOOS=$${p%/*} GOARCH=$${p#*/} CGO_ENABLED=0 go build -o /dev/null ./cmd/haldir || exit 1; done

# The tests of the systems that are not this one.
foreign:
	for os in darwin windows; do GOOS=$$os go vet ./... || exit 1; done

bench:
	go test -run xxx -bench . ./policy ./proxy ./internal/ledger ./cmd/haldir

soak:
	HALDIR_KILLS=500 go test -tags soak -count=1 -timeout 60m ./...
	$(MAKE) fuzz FUZZTIME=60s
	packaging/build && packaging/reproduce

# The pictures of the console in docs/, as its test sees it with a real serve.
pictures:
	HALDIR_ARTIFACTS=$(CURDIR)/build/artifacts go test -count=1 -run '^TestRealConsole$$' ./internal/console/page
	cp build/artifacts/console/TestRealConsole-overview-1280-dark.png docs/pictures/overview.png
	cp build/artifacts/console/TestRealConsole-held.png docs/pictures/approval.png
