# The portable core on this machine: tests, every state of a small machine, fuzzing, coverage.
# The core's variables become one section (core_state.lds), so that a test can save and load a state.
HOST := build/host
HOST_CC ?= gcc
HOST_FLAGS := -std=gnu11 -g -Wall -Wextra -Werror -MMD -MP
CORE := $(notdir $(basename $(wildcard core/*.c)))
WORLD := arch/fake_host/fake_host.c tests/world.c tests/model.c
SMALL := $(HOST)/small
SECONDS ?= 60

.PHONY: exhaustive mutants fuzz

# ---- the small machine --------------------------------------------------------------------------------

$(SMALL)/flex.h: tests/variant.py ../abi/flex.h $(wildcard core/*)
	@python3 tests/variant.py $(SMALL)

# $(call small,FOLDER,PAGES,SLOTS,COMPILER AND FLAGS): the shrunk core and the world around it.
small = mkdir -p $(1) && for file in $(CORE); do \
		$(4) $(call sizes,$(2),$(3)) -I$(SMALL) -I. -c $(SMALL)/core/$$file.c -o $(1)/$$file.o || exit 1; done && \
	ld -r -T tests/core_state.lds $(CORE:%=$(1)/%.o) -o $(1)/core.o
sizes = -DSMALL_PAGES=$(1) -DFLEX_MAILBOX_SLOTS=$(2) -DSMALL_NOTICES=2 -DSMALL_STEPS=2

# exhaustive-PAGES-SLOTS
$(HOST)/exhaustive-%: $(SMALL)/flex.h $(WORLD) tests/exhaustive.c tests/core_state.lds $(wildcard tests/*.h)
	@echo "  CC   $@"
	@$(call small,$(HOST)/small-$*,$(word 1,$(subst -, ,$*)),$(word 2,$(subst -, ,$*)),$(HOST_CC) $(HOST_FLAGS) -O2)
	@$(HOST_CC) $(HOST_FLAGS) -O2 $(call sizes,$(word 1,$(subst -, ,$*)),$(word 2,$(subst -, ,$*))) -I$(SMALL) -I. \
		$(WORLD) tests/exhaustive.c $(HOST)/small-$*/core.o -o $@ -pthread

exhaustive: $(HOST)/exhaustive-4-1 $(HOST)/exhaustive-2-2 ## every state of small machines: a proof for them (half a minute)
	@for program in $^; do $$program || exit 1; done

# ---- faults put in ----------------------------------------------------------------------------------------

$(HOST)/around-2-2.o: $(SMALL)/flex.h $(WORLD) tests/exhaustive.c $(wildcard tests/*.h)
	@for file in $(WORLD) tests/exhaustive.c; do \
		$(HOST_CC) $(HOST_FLAGS) -O2 $(call sizes,2,2) -I$(SMALL) -I. -c $$file -o $(HOST)/around-$$(basename $$file .c).o || exit 1; done
	@ld -r $(patsubst %.c,$(HOST)/around-%.o,$(notdir $(WORLD)) exhaustive.c) -o $@

mutants: $(HOST)/around-2-2.o ## put faults into the core, one at a time: each must be noticed (a minute)
	@python3 tests/mutants.py $(HOST)/mutants $< $(HOST_CC) -std=gnu11 -O1 $(call sizes,2,2)

# ---- fuzzing --------------------------------------------------------------------------------------------------

SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
# The core's variables are saved and loaded as one piece: no red zones between them.
FUZZ_CC = clang $(HOST_FLAGS) -O1 $(SANITIZERS) -mllvm -asan-globals=0

$(HOST)/fuzz: $(SMALL)/flex.h $(WORLD) tests/fuzz.c tests/core_state.lds $(wildcard tests/*.h)
	@echo "  CC   $@"
	@$(call small,$(HOST)/small-fuzz,8,4,$(FUZZ_CC) -fsanitize=fuzzer-no-link)
	@$(FUZZ_CC) -fsanitize=fuzzer $(call sizes,8,4) -I$(SMALL) -I. $(WORLD) tests/fuzz.c $(HOST)/small-fuzz/core.o -o $@ -pthread

fuzz: $(HOST)/fuzz ## random walks of both worlds through a small machine, for SECONDS=60
	@mkdir -p $(HOST)/corpus && $(HOST)/fuzz --seeds $(HOST)/corpus
	@$(HOST)/fuzz -max_total_time=$(SECONDS) -max_len=4096 -timeout=10 -print_final_stats=1 -verbosity=0 \
		-artifact_prefix=$(HOST)/ $(HOST)/corpus
