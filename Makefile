# The commands that a person types; `make` alone lists them. What they need and the machine lacks, they install.

# Tools and compiled dependencies live outside the clone, so that every clone finds them there.
CACHE := $(or $(ECR_TRANSFER_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/ecr-transfer)

export ECR_TRANSFER_TOOLS := $(CACHE)/tools
export PATH := $(ECR_TRANSFER_TOOLS)/bin:$(PATH)
export CARGO_BUILD_BUILD_DIR ?= $(CACHE)/build
# cargo-lambda links with the zig that was installed with it.
export CARGO_ZIGBUILD_PYTHON_PATH := $(ECR_TRANSFER_TOOLS)/sam/bin/python
export SAM_CLI_TELEMETRY := 0

# What the functions that are deployed are built for.
ARCHITECTURE := arm64
CARGO := tools/exclusively cargo
LOCAL := $(or $(CARGO_TARGET_DIR),target)/debug/local
COMMAND := $(or $(CARGO_TARGET_DIR),target)/debug/ecr-transfer
PYTHON := $(ECR_TRANSFER_TOOLS)/sam/bin/python
CHECK := $(PYTHON) tools/check.py

.DEFAULT_GOAL := help
# The steps share one build directory; cargo and sam use every core by themselves.
.NOTPARALLEL:

.PHONY: help
help: ## List these commands
	@sed -nE 's/^([a-z0-9-]+):.* ## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand --tabs=26

# Try it

.PHONY: run
run: build ## Copy images on a local AWS, then see that a second run copies nothing; IMAGES=a,b copies just these
	@$(LOCAL) run $(if $(IMAGES),--images '$(IMAGES)')

.PHONY: up
up: build ## Start the local AWS, deploy to it, and leave it running
	@$(LOCAL) up

.PHONY: down
down: ## Stop the local AWS that `make up` started
	@test ! -x $(LOCAL) || $(LOCAL) down

# Deploy it

.PHONY: deploy
deploy: setup ## Build for AWS and deploy there, with the credentials that the AWS CLI would use; ARCHITECTURE=x86_64 builds for that
	tools/exclusively tools/build $(ARCHITECTURE)
	sam deploy --guided

.PHONY: publish
publish: setup ## Build, upload code and template to BUCKET=name, and print the URL that CloudFormation takes; also ARCHITECTURE=x86_64
	@test -n '$(BUCKET)' || { echo 'usage: make publish BUCKET=name [PREFIX=path] [ARCHITECTURE=x86_64]' >&2; exit 1; }
	tools/exclusively tools/build $(ARCHITECTURE)
	$(PYTHON) tools/publish.py .aws-sam/build/template.yaml '$(BUCKET)' $(if $(PREFIX),'$(PREFIX)')

.PHONY: release
release: setup ## Build the archives of a release below dist/: template and functions, and the command, for both architectures
	rm -rf dist
	tools/exclusively tools/build arm64 .aws-sam/release/arm64
	$(CHECK) artifacts .aws-sam/release/arm64 arm64
	tools/exclusively tools/build x86_64 .aws-sam/release/x86_64
	$(CHECK) artifacts .aws-sam/release/x86_64 x86_64
	tools/exclusively tools/static arm64 .aws-sam/release/static-arm64
	tools/exclusively tools/static x86_64 .aws-sam/release/static-x86_64
	$(PYTHON) tools/release.py dist .aws-sam/release arm64 x86_64

.PHONY: check-aws
check-aws: setup ## Deploy to an AWS account, copy three small images, check everything, delete it again; asks first, some cents
	@$(CARGO) build --locked --quiet -p ecr-transfer-cli
	@$(PYTHON) tools/check_aws.py --command $(COMMAND) $(REGION:%=--region %) $(if $(YES),--yes) $(if $(KEEP),--keep)

.PHONY: delete
delete: setup ## Delete the stack STACK=name, also while a run is active; REGION=name, YES=1 does not ask
	@test -n '$(STACK)' || { echo 'usage: make delete STACK=name [REGION=name] [YES=1]' >&2; exit 1; }
	@$(CARGO) build --locked --quiet -p ecr-transfer-cli
	@$(COMMAND) delete '$(STACK)' $(REGION:%=--region %) $(if $(YES),--yes)

# Work on it

.PHONY: check-aws-local
check-aws-local: setup ## Run check-aws on a local AWS
	@tools/exclusively tools/build
	$(CARGO) build --locked --quiet -p ecr-transfer-local -p ecr-transfer-cli
	@$(LOCAL) check

.PHONY: test
test: setup-test ## Run every test: unit, documentation, and end to end on a local AWS
	$(CARGO) test --locked --workspace --exclude ecr-transfer-tests
	tools/exclusively tools/build
	$(CHECK) artifacts .aws-sam/build $(subst aarch64,arm64,$(shell uname -m))
	@# Of the whole workspace again: with other packages, other features, and half of the dependencies compiled twice.
	$(CARGO) test --locked --workspace --test e2e

.PHONY: e2e
e2e: setup ## Run the end-to-end tests whose name contains TEST=text, or all of them
	@tools/exclusively tools/build
	$(CARGO) test --locked --workspace --test e2e -- $(TEST)

.PHONY: chaos
chaos: setup ## Throw faults at a running stack for five minutes; SEED=n and SECONDS=n choose which, and how long
	@tools/exclusively tools/build
	$(CARGO) test --locked --workspace --test chaos -- $(if $(SEED),--seed $(SEED)) $(if $(SECONDS),--seconds $(SECONDS))

.PHONY: test-kubernetes
test-kubernetes: setup ## Run what `mirror kubernetes` prints on Kubernetes' own admission code, from Debian sid; TEST=name, SEED=n, FIGURES=1 measures
	@$(CARGO) build --locked --quiet -p ecr-transfer-cli
	tests/kubernetes/run $(CACHE)/kubernetes $(COMMAND) $(if $(TEST),-run '$(TEST)') $(if $(FIGURES),-run Figures -v)

.PHONY: bench
bench: setup ## Measure ecr-transfer, alone and against other tools, and update the pages in docs/; takes half an hour
	tools/exclusively tools/build
	$(CARGO) run --locked --quiet -p ecr-transfer-bench -- copying --markdown docs/comparison.md --check
	$(CARGO) run --locked --quiet -p ecr-transfer-bench -- starting --python $(ECR_TRANSFER_TOOLS)/sam/bin/python --markdown docs/starting.md --check
	$(CARGO) run --locked --quiet -p ecr-transfer-bench -- planning --markdown docs/benchmarks.md --check
	$(CARGO) run --locked --quiet -p ecr-transfer-bench -- model --markdown docs/scale.md
	$(CARGO) build --locked --release -p ecr-transfer-cli
	$(CARGO) run --locked --quiet -p ecr-transfer-bench -- mirror --command $(or $(CARGO_TARGET_DIR),target)/release/ecr-transfer --markdown docs/mirror/benchmarks.md --check

.PHONY: bench-small
bench-small: setup ## Compare ecr-transfer with other tools on 1,000 small images; takes an hour and a half, most of it skopeo sync
	tools/exclusively tools/build
	$(CARGO) run --locked --quiet -p ecr-transfer-bench -- copying --set small --markdown docs/comparison-small.md --check

# Without link-time optimization, which takes minutes and changes nothing that `make run` shows.
.PHONY: build
build: setup ## Build what `make run` runs: the functions, without optimization, and the local AWS
	@echo 'Building the functions and a local AWS. The first time, this takes some minutes.'
	@SAM_BUILD_MODE=debug tools/exclusively tools/build '' .aws-sam/local
	@$(CARGO) build --locked -p ecr-transfer-local

.PHONY: lint
lint: fmt deny shell template clippy doc ## Run every check that is not a test

.PHONY: fmt
fmt: setup-lint
	cargo metadata --locked --format-version 1 >/dev/null
	cargo fmt --all --check

.PHONY: deny
deny: setup-lint
	@# Advisories are left out: their database comes from the network.
	cargo-deny --locked check bans licenses sources

.PHONY: shell
shell: setup-lint
	shellcheck .ci/run tests/kubernetes/run tests/kubernetes/setup tools/build tools/exclusively tools/setup tools/static

.PHONY: template
template: setup-lint
	sam validate --lint
	$(CHECK) template template.yaml
	$(ECR_TRANSFER_TOOLS)/checkov/bin/checkov --config-file tools/checkov.yaml

.PHONY: parameters
parameters: setup-lint ## Write the parameter tables of the guides, from template.yaml and docs/parameters.zh.yaml
	$(PYTHON) tools/parameters.py

.PHONY: clippy
clippy: setup-lint
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

.PHONY: doc
doc: setup-lint
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --workspace --no-deps --document-private-items

.PHONY: arm64
arm64: setup-lint ## Build the Lambdas for AWS, and check what would be uploaded
	tools/exclusively tools/build arm64 .aws-sam/arm64
	$(CHECK) artifacts .aws-sam/arm64 arm64

.PHONY: mutants
mutants: setup-mutants setup-test ## List the changes to the code that no unit test notices; takes hours; SHARD=0/8 tries an eighth of them, FILE=path those of a file
	mkdir -p target/libraries target/command target/programs
	$(MUTANTS) --output target/libraries --package ecr-transfer-shared --package list-images --cargo-arg=--lib || $(MISSED)
	@# What the command prints is tested by running it.
	$(MUTANTS) --output target/command --package ecr-transfer-cli --cargo-arg=--lib --cargo-arg=--test=rewriting || $(MISSED)
	$(MUTANTS) --output target/programs --package launch-task --package record-status --cargo-arg=--bins || $(MISSED)

# What it builds is not this clone's code, so it has a directory of its own.
MUTANTS = CARGO_BUILD_BUILD_DIR=$(CACHE)/mutants CARGO_PROFILE_DEV_DEBUG=0 $(CARGO) mutants \
	$(if $(SHARD),--shard $(SHARD)) $(if $(FILE),--file '$(FILE)')
# A mutant that was missed, or that never ended, is a result and not an error.
MISSED := [ $$? = 2 ] || [ $$? = 3 ]

.PHONY: setup setup-lint setup-mutants setup-test
setup:
	@tools/setup
setup-lint:
	@tools/setup lint
setup-mutants:
	@tools/setup mutants
setup-test:
	@tools/setup test

.PHONY: lock
lock: setup-lint ## Pin anew what tools/*.in and tools/package.json ask for
	python3 -m venv $(ECR_TRANSFER_TOOLS)/uv
	$(ECR_TRANSFER_TOOLS)/uv/bin/pip install --quiet uv==0.13.9
	cd tools && for name in checkov ministack sam; do UV_CUSTOM_COMPILE_COMMAND='make lock' $(ECR_TRANSFER_TOOLS)/uv/bin/uv \
		pip compile --quiet --universal --python-version 3.10 --generate-hashes --no-annotate $$name.in -o $$name.txt; done
	cd tools && UV_CUSTOM_COMPILE_COMMAND='make lock' $(ECR_TRANSFER_TOOLS)/uv/bin/uv \
		pip compile --quiet --no-deps --universal --python-version 3.10 --generate-hashes --no-annotate kubernetes.in -o kubernetes.txt
	cd tools && npm install --package-lock-only --silent

.PHONY: clean
clean: ## Remove what was built in this clone; tools and compiled dependencies stay in the cache
	rm -rf target .aws-sam dist
