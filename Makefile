# bdsnap: everything is one command: make, make demo|demo-stretch, test|test-long|test-host|test-vm|fuzz|lint,
# bench, shell, rootfs-script, install, clean.
#
# The module is built for the running kernel where that one has Rust metadata, else for the newest 7.x
# kernel of Debian backports, with a toolchain that is fetched into ${BDSNAP_CACHE:-~/.cache/bdsnap}.
#   KDIR=DIR    build against this prepared tree, with the machine's own toolchain
#   KERNEL=REL  another kernel release of Debian backports instead of the newest; KERNEL=debug: our debug
#               kernel of the same source (scripts/debug-kernel), for all that runs in the VM
#   V=1         show the commands

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := all

KERNEL ?= $(BDSNAP_KERNEL)
BUILD := $(CURDIR)/build
MODULE := $(BUILD)/module$(if $(filter debug,$(KERNEL)),-debug)
TARGET := x86_64-unknown-linux-gnu
BIN := $(BUILD)/cargo/$(TARGET)/release
JOBS := $(shell nproc)

ifneq ($(KERNEL),)
export BDSNAP_KERNEL := $(KERNEL)
KDIR_WANTED := prepared
endif

# native: with the machine's own toolchain, for KDIR; else in the toolchain root, for the prepared kernel
RUNNING := /lib/modules/$(shell uname -r)/build
ifneq ($(KDIR),)
NATIVE := 1
else ifeq ($(KDIR_WANTED),)
ifneq ($(wildcard $(RUNNING)/rust/libmacros.so),)
NATIVE := 1
KDIR := $(RUNNING)
endif
endif

# the kernel the VM runs is always the prepared one: tests build for that
VM_GOALS := demo demo-stretch test test-long test-vm test-host bench shell rootfs-script lint
ifneq ($(filter $(VM_GOALS) vm-build,$(MAKECMDGOALS)),)
ifeq ($(origin KDIR),file)
NATIVE :=
export KDIR_WANTED := prepared
endif
endif

RUSTFLAGS_STATIC := -C target-feature=+crt-static
CARGO_ENV := CARGO_TARGET_DIR=$(BUILD)/cargo CARGO_BUILD_TARGET=$(TARGET) RUSTFLAGS="$(RUSTFLAGS_STATIC)"
# (generated sources are found by an absolute path: $(obj) is relative in an output directory)
KBUILD_ARGS := M=$(CURDIR) MO=$(MODULE) BDSNAP_GEN=$(MODULE) $(if $(V),V=$(V)) -j$(JOBS)

.PHONY: all module tool abi test-modules vm-build
all: module tool

ifdef NATIVE
KBUILD = $(MAKE) -C $(KDIR)
module:
	@mkdir -p $(MODULE)
	@+$(KBUILD) $(KBUILD_ARGS) modules
tool:
	@$(CARGO_ENV) cargo build --release --locked -p bdsnap -p bdsnap-tests
else
KBUILD = k=$$(scripts/kernel) && scripts/in-root $(MAKE) --no-print-directory -C $$k/build $$(cat $$k/flags)
module:
	@+k=$$(scripts/kernel) && mkdir -p $(MODULE) && \
	{ cmp -s <(echo $$k) $(MODULE)/.kernel || { rm -rf $(MODULE); mkdir -p $(MODULE); echo $$k >$(MODULE)/.kernel; }; } && \
	$(KBUILD) $(KBUILD_ARGS) modules
tool:
	@scripts/cargo build --release --locked -p bdsnap -p bdsnap-tests
endif

# the C users of the ABI header, static so that they run in any VM
ABI_SOURCES := $(wildcard tests/abi/*.c)
abi: $(ABI_SOURCES:tests/abi/%.c=$(BUILD)/abi/%)
$(BUILD)/abi/%: tests/abi/%.c include/uapi/bdsnap.h
	@mkdir -p $(@D)
	scripts/in-root gcc -std=gnu11 -O2 -Wall -Wextra -Werror -static -I$(CURDIR)/include/uapi -o $@ $<

# modules that only tests load, where they go with the module when the kernel changes
TEST_SOURCES := $(wildcard tests/kernel/*.c)
TEST_MODULES := $(TEST_SOURCES:tests/kernel/%.c=$(MODULE)/tests/%.ko)
test-modules: module
	@$(MAKE) --no-print-directory $(TEST_MODULES)
$(TEST_MODULES) &: $(TEST_SOURCES) tests/kernel/Kbuild
	@mkdir -p $(@D)
	@+$(KBUILD) M=$(CURDIR)/tests/kernel MO=$(@D) $(if $(V),V=$(V)) -j$(JOBS) modules
	@touch $(TEST_MODULES)

# what a VM run needs; the output is not the run's
vm-build:
	@$(MAKE) --no-print-directory module tool abi test-modules >&2

.PHONY: rootfs-script shell demo demo-stretch
# make rootfs-script SCRIPT=path [DISKS="512M 512M:4096"] [KERNEL=] [SHARE=dir] [TIMEOUT=600] [MEMORY=2G]
VM_FLAGS = $(if $(DISKS),--disks "$(DISKS)") $(if $(SHARE),--share "$(SHARE)") $(if $(TIMEOUT),--timeout $(TIMEOUT)) $(if $(MEMORY),--memory $(MEMORY))
rootfs-script: vm-build
	@[ -n "$(SCRIPT)" ] || { echo 'usage: make rootfs-script SCRIPT=path [DISKS="512M 512M:4096 ..."]' >&2; exit 2; }
	@scripts/vm $(VM_FLAGS) "$(SCRIPT)" $(ARGS)

shell: vm-build
	@scripts/vm $(if $(DISKS),,--disks "1G 1G 512M:4096") $(VM_FLAGS) --shell

demo: vm-build
	@tests/demo/run

# a store that starts small and grows: make demo-stretch [MIB=2048] [FS=ext4]
demo-stretch: MIB ?= 2048
demo-stretch: FS ?= ext4
demo-stretch: vm-build
	@COLOR=$$([ -t 1 ] && echo 1) MIB=$(MIB) FS=$(FS) BDSNAP_PASS="COLOR MIB FS" scripts/vm --name demo-stretch-$(FS) --timeout $$(($(MIB) + 1000)) \
		--disks $$(($(MIB) * 4 + 1024))M tests/demo/stretch.sh

.PHONY: test test-long test-host test-vm fuzz lint bench
test:
	@scripts/test
# with all VM tests, also those of which "make test" takes a few by lot
test-long:
	@scripts/test --long
# only a part of it: make test-vm T="name ..."
test-vm: vm-build
	@tests/vm/run-tests $(T)
test-host:
	@scripts/test --host
# libFuzzer on the decisions of src/logic: make fuzz [SECONDS=60]
fuzz:
	@scripts/fuzz $(SECONDS)
# (one of the checks looks into the module's objects)
lint: module
	@scripts/lint
bench: vm-build
	@tests/bench/run

.PHONY: install
DESTDIR ?=
# What is built, as it is: by sudo, this has another home, and would build all of it again there.
install: $(if $(and $(wildcard $(MODULE)/bdsnap.ko),$(wildcard $(BIN)/bdsnap)),,all)
	@scripts/install "$(DESTDIR)" "$(MODULE)/bdsnap.ko" "$(BIN)/bdsnap"

.PHONY: clean
clean:
	rm -rf $(BUILD)
