# The portable core on this machine: tests, every state of a small machine, fuzzing, coverage.
# The core's variables become one section (core_state.lds), so that a test can save and load a state.
HOST := build/host
HOST_CC ?= gcc
HOST_FLAGS := -std=gnu11 -g -Wall -Wextra -Werror -MMD -MP
CORE := $(notdir $(basename $(wildcard core/*.c)))
WORLD := arch/fake_host/fake_host.c tests/world.c tests/laws.c tests/places.c tests/model.c tests/model_commands.c
SMALL := $(HOST)/small
SECONDS ?= 60

# What takes minutes: run in full, and recorded in proofs.lock.
RECORDED := exhaustive mutants prove
.PHONY: $(RECORDED) $(RECORDED:%=run-%) refute fuzz test check coverage lines
$(RECORDED):
	@python3 tests/record.py $@

exhaustive: ## every state of small machines: a proof for them (two minutes)
mutants: ## put faults into the core, one at a time: each must be noticed (a minute)
prove: ## by CBMC, for any state, registers and commands: the laws of tests/proofs hold (two minutes)

# ---- the small machine --------------------------------------------------------------------------------

$(SMALL)/flex.h: tests/variant.py ../abi/flex.h $(wildcard core/*)
	@python3 tests/variant.py $(SMALL)

# $(call small,FOLDER,PAGES,SLOTS,NPUS,COMPILER AND FLAGS): the shrunk core and the world around it.
small = mkdir -p $(1) && for file in $(CORE); do \
		$(5) $(call sizes,$(2),$(3),$(4)) -I$(SMALL) -I. -c $(SMALL)/core/$$file.c -o $(1)/$$file.o || exit 1; done && \
	ld -r -T tests/core_state.lds $(CORE:%=$(1)/%.o) -o $(1)/core.o
sizes = -DSMALL_PAGES=$(1) -DFLEX_MAILBOX_SLOTS=$(2) -DSMALL_NPUS=$(3) -DSMALL_NOTICES=2 -DSMALL_STEPS=2 -DSMALL_TURNS=2

# exhaustive-PAGES-SLOTS-NPUS
part = $(word $(1),$(subst -, ,$(2)))
$(HOST)/exhaustive-%: $(SMALL)/flex.h $(WORLD) tests/exhaustive.c tests/core_state.lds $(wildcard tests/*.h)
	@echo "  CC   $@"
	@$(call small,$(HOST)/small-$*,$(call part,1,$*),$(call part,2,$*),$(call part,3,$*),$(HOST_CC) $(HOST_FLAGS) -O2)
	@$(HOST_CC) $(HOST_FLAGS) -O2 $(call sizes,$(call part,1,$*),$(call part,2,$*),$(call part,3,$*)) -I$(SMALL) -I. \
		$(WORLD) tests/exhaustive.c $(HOST)/small-$*/core.o -o $@ -pthread

run-exhaustive: $(HOST)/exhaustive-4-1-0 $(HOST)/exhaustive-2-2-0 $(HOST)/exhaustive-3-1-1 $(HOST)/exhaustive-1-2-1
	@for program in $^; do $$program || exit 1; done

# ---- faults put in ----------------------------------------------------------------------------------------

$(HOST)/around-2-1-1.o: $(SMALL)/flex.h $(WORLD) tests/exhaustive.c $(wildcard tests/*.h)
	@for file in $(WORLD) tests/exhaustive.c; do \
		$(HOST_CC) $(HOST_FLAGS) -O2 $(call sizes,2,1,1) -I$(SMALL) -I. -c $$file -o $(HOST)/around-$$(basename $$file .c).o || exit 1; done
	@ld -r $(patsubst %.c,$(HOST)/around-%.o,$(notdir $(WORLD)) exhaustive.c) -o $@

run-mutants: $(HOST)/around-2-1-1.o
	@python3 tests/mutants.py $(HOST)/mutants $< $(HOST_CC) -std=gnu11 -O1 $(call sizes,2,1,1)

# ---- proofs ----------------------------------------------------------------------------------------------------

run-prove:
	@python3 tests/prove.py $(HOST)/proofs

refute: ## put faults into the core, one at a time: the proofs must notice; and they speak of what can be (six minutes)
	@python3 tests/refute.py $(HOST)/refute

# ---- fuzzing --------------------------------------------------------------------------------------------------

SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
# The core's variables are saved and loaded as one piece: no red zones between them.
FUZZ_CC = clang $(HOST_FLAGS) -O1 $(SANITIZERS) -mllvm -asan-globals=0

$(HOST)/fuzz: $(SMALL)/flex.h $(WORLD) tests/fuzz.c tests/core_state.lds $(wildcard tests/*.h)
	@echo "  CC   $@"
	@$(call small,$(HOST)/small-fuzz,8,4,1,$(FUZZ_CC) -fsanitize=fuzzer-no-link)
	@$(FUZZ_CC) -fsanitize=fuzzer $(call sizes,8,4,1) -I$(SMALL) -I. $(WORLD) tests/fuzz.c $(HOST)/small-fuzz/core.o -o $@ -pthread

fuzz: $(HOST)/fuzz ## random walks of both worlds through a small machine, for SECONDS=60
	@mkdir -p $(HOST)/corpus && $(HOST)/fuzz --seeds $(HOST)/corpus
	@$(HOST)/fuzz -max_total_time=$(SECONDS) -max_len=4096 -timeout=10 -print_final_stats=1 -verbosity=0 \
		-artifact_prefix=$(HOST)/ $(HOST)/corpus

# ---- the core as it is: tests with two compilers and their sanitizers, threads, coverage -----------------------

UNITS := $(wildcard tests/test_*.c) tests/unit.c tests/check.c arch/fake_host/fake_host.c
# Seen by the tests alone: where the rings' counters stand.
SHOWN := --globalize-symbol=command_tail --globalize-symbol=event_head

# $(call unit,PROGRAM,COMPILER AND FLAGS)
unit = mkdir -p $(1).o && for file in $(CORE); do $(2) -I. -I../abi -c core/$$file.c -o $(1).o/$$file.o || exit 1; done && \
	ld -r -T tests/core_state.lds $(CORE:%=$(1).o/%.o) -o $(1).o/core-all && objcopy $(SHOWN) $(1).o/core-all && \
	$(2) -I. -I../abi $(UNITS) $(1).o/core-all -o $(1) -pthread
UNIT_NEEDS := $(UNITS) $(wildcard core/*) tests/unit.h tests/check.h arch/arch.h arch/fake_host/fake_host.h tests/core_state.lds ../abi/flex.h

$(HOST)/unit-gcc: $(UNIT_NEEDS)
	@echo "  CC   $@"
	@$(call unit,$@,gcc $(HOST_FLAGS) -O1 $(SANITIZERS) --param asan-globals=0)

$(HOST)/unit-clang: $(UNIT_NEEDS)
	@echo "  CC   $@"
	@$(call unit,$@,clang $(HOST_FLAGS) -O1 $(SANITIZERS) -mllvm -asan-globals=0)

$(HOST)/unit-threads: $(UNIT_NEEDS)
	@echo "  CC   $@"
	@$(call unit,$@,clang $(HOST_FLAGS) -O1 -fsanitize=thread)

test: $(HOST)/unit-gcc $(HOST)/unit-clang $(HOST)/unit-threads ## tests of the portable core, with sanitizers
	@for program in $^; do $$program || exit 1; done

check: $(HOST)/unit-gcc ## the same under gcc only: seconds
	@$<

COVERED := -O0 -fprofile-instr-generate -fcoverage-mapping
$(HOST)/unit-coverage: $(UNIT_NEEDS)
	@echo "  CC   $@"
	@$(call unit,$@,clang $(HOST_FLAGS) $(COVERED))

coverage: $(HOST)/unit-coverage ## branches of the core that its tests take
	@LLVM_PROFILE_FILE=$(HOST)/coverage.raw $<
	@llvm-profdata merge $(HOST)/coverage.raw -o $(HOST)/coverage.data
	@llvm-cov report $< -instr-profile $(HOST)/coverage.data --show-region-summary=false $(wildcard core/*.c)

lines: ## of the trusted code, without comments and blank lines
	@find core el3 arch/aarch64 plat -name '*.[chS]' | xargs cat | gcc -fpreprocessed -dD -E -P -x c - 2> /dev/null | wc -l
