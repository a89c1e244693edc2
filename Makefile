# Every target sets up what it needs first; a second run finds it there and is quick.

# cargo is found also where rustup's directory is not on PATH.
export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)

.PHONY: help setup build demo test fuzz bench vm clean

help: ## what the targets do
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST)

setup: ## install what is missing: packages, toolchain, bpf-linker
	@xtask/setup

build: setup ## target/release/lbd and target/release/lbctl
	@cargo xtask build

demo: setup ## see it work, in a network of its own (root)
	@cargo xtask demo

test: setup ## all tests, also with real packets (root)
	@cargo xtask test

fuzz: setup ## random packets and inputs, ten minutes of them (root)
	@cargo xtask fuzz

bench: setup ## time of the packet programs (root)
	@cargo xtask bench

vm: setup ## tests on Debian's kernels, from 5.10 on, in virtual machines
	@cargo xtask vm

clean: ## remove what was built
	@cargo clean
