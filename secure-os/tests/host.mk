# The portable core on this machine: its tests, with sanitizers.
HOST := build/host
HOST_FLAGS := -std=gnu11 -g -O1 -Wall -Wextra -Werror -fsanitize=address,undefined -fno-sanitize-recover=all \
	-fno-omit-frame-pointer -I. -I../monitor -I../abi
UNITS := $(wildcard core/*.c) ../monitor/core/sha256.c $(wildcard arch/fake_host/*.c) $(wildcard tests/*.c) \
	../monitor/tests/check.c

check: $(HOST)/unit ## tests of the portable core: seconds
	@$<

$(HOST)/unit: $(UNITS) $(wildcard core/*.h arch/*.h arch/fake_host/*.h tests/*.h) ../monitor/tests/check.h ../abi/flex.h ../abi/flex_secure.h
	@mkdir -p $(@D)
	@echo "  CC   $@"
	@gcc $(HOST_FLAGS) $(UNITS) -o $@

# Its core's variables are written from outside, so these files are a part of its own.
INSIDE := $(addprefix core/,flex_calls.c kernel.c mailbox.c threads.c)
interleavings: $(HOST)/interleavings ## every interleaving of who lends CPUs and who waits inside: no wake-up is lost (seconds)
	@$< $(CASE)

$(HOST)/interleavings: tests/interleavings/lending.c $(wildcard tests/interleavings/*.c) $(UNITS) $(wildcard core/*.h arch/*.h arch/fake_host/*.h tests/*.h)
	@mkdir -p $(@D)
	@echo "  CC   $@"
	@gcc -std=gnu11 -g -O2 -Wall -Wextra -Werror -I. -I../monitor -I../abi $< $(filter-out $(INSIDE),$(wildcard core/*.c)) \
		../monitor/core/sha256.c arch/fake_host/fake_host.c tests/unit.c ../monitor/tests/check.c -o $@

PROOFS = PYTHONPATH=../monitor/tests python3 tests/secure_os_proofs.py

.PHONY: interleavings prove run-prove refute
prove: ## by CBMC, for any state and any arguments: the laws of tests/proofs hold (a minute); recorded beside the monitor's
	@python3 ../monitor/tests/record.py secure_os_prove

run-prove:
	@$(PROOFS) prove $(HOST)/prove

refute: ## put faults into the core, one at a time: the proofs must notice; and they speak of what can be (some minutes)
	@$(PROOFS) refute $(HOST)/refute

lines: ## of the secure OS, without comments and blank lines
	@find core arch/aarch64 arch/arch.h plat -name '*.[chS]' | xargs cat | gcc -fpreprocessed -dD -E -P -x c - 2> /dev/null | wc -l
