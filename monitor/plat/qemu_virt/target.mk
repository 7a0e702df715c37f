# The firmware for QEMU's `virt` machine: build/fw.bin, EL3 with EL2's image inside.
CROSS_COMPILE ?= aarch64-linux-gnu-
FW := build/fw
FW_FLAGS := -std=gnu11 -O2 -Wall -Wextra -Werror -ffreestanding -fno-builtin -fno-pic -fno-pie -fno-stack-protector \
	-fno-asynchronous-unwind-tables -fno-tree-loop-distribute-patterns -mgeneral-regs-only -mstrict-align -mno-outline-atomics -mcpu=cortex-a72 \
	-I. -I../abi -I$(FW) -MMD -MP
FW_LINK := -nostdlib -static -no-pie -Wl,--build-id=none -Wl,--no-warn-rwx-segments -Wl,-z,noexecstack

EL2_OBJECTS := $(patsubst %,$(FW)/%.o,$(wildcard core/*.c) $(wildcard arch/aarch64/*.c) arch/aarch64/sandbox.S arch/aarch64/vectors.S)
EL3_OBJECTS := $(patsubst %,$(FW)/%.o,$(wildcard el3/*.c) el3/start.S el3/world.S el3/image.S) $(FW)/el3/layout.o $(FW)/el3/sha256.o \
	$(FW)/el3/memory.o $(FW)/el3/image_offsets.o

fw: build/fw.bin ## the firmware

build/fw.bin: $(FW)/el3.elf
	@$(CROSS_COMPILE)objcopy -O binary $< $@

$(FW)/el3.elf: $(EL3_OBJECTS) plat/qemu_virt/el3.ld
	@echo "  LINK $@"
	@$(CROSS_COMPILE)gcc $(FW_LINK) -T plat/qemu_virt/el3.ld $(EL3_OBJECTS) -o $@

$(FW)/el2.elf: $(EL2_OBJECTS) plat/qemu_virt/el2.ld
	@echo "  LINK $@"
	@$(CROSS_COMPILE)gcc $(FW_LINK) -T plat/qemu_virt/el2.ld $(EL2_OBJECTS) -o $@

$(FW)/el2.bin: $(FW)/el2.elf
	@$(CROSS_COMPILE)objcopy -O binary --set-section-flags .bss=alloc,load,contents $< $@

# EL3 sets EL2's vectors and maps its image: it has to know where in the image they, constants and variables are.
$(FW)/el3/image_offsets.c: $(FW)/el2.elf
	@mkdir -p $(@D)
	@{ echo '#include "core/types.h"'; $(CROSS_COMPILE)nm $< | awk '/ el2_(vectors|constants|variables)$$/ \
		{ print "const u64 " $$3 "_offset = 0x" $$1 "ULL - 0x100000000ULL;" }'; } > $@

$(FW)/el3/image_offsets.o: $(FW)/el3/image_offsets.c
	@echo "  CC   $@"
	@$(CROSS_COMPILE)gcc $(FW_FLAGS) -c $< -o $@

$(FW)/el3/layout.o $(FW)/el3/sha256.o: $(FW)/el3/%.o: core/%.c
	@mkdir -p $(@D)
	@echo "  CC   $@"
	@$(CROSS_COMPILE)gcc $(FW_FLAGS) -c $< -o $@

$(FW)/el3/memory.o: arch/aarch64/memory.c
	@mkdir -p $(@D)
	@echo "  CC   $@"
	@$(CROSS_COMPILE)gcc $(FW_FLAGS) -c $< -o $@

$(FW)/el3/image.S.o: $(FW)/el2.bin

$(FW)/%.o: %
	@mkdir -p $(@D)
	@echo "  CC   $@"
	@$(CROSS_COMPILE)gcc $(FW_FLAGS) -Wa,-I$(FW) -c $< -o $@

-include $(shell find $(FW) -name '*.d' 2>/dev/null)
