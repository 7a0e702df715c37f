# The secure OS for QEMU's `virt` machine: build/secure_os.bin, for secure flash at 0x0040_0000.
CROSS_COMPILE ?= aarch64-linux-gnu-
OUT := build/target
OS_FLAGS := -std=gnu11 -O2 -Wall -Wextra -Werror -ffreestanding -fno-builtin -fno-pic -fno-pie -fno-stack-protector \
	-fno-asynchronous-unwind-tables -fno-tree-loop-distribute-patterns -mgeneral-regs-only -mstrict-align -mno-outline-atomics -mcpu=cortex-a76 \
	-I. -I../monitor -I../abi -MMD -MP
OS_LINK := -nostdlib -static -no-pie -Wl,--build-id=none -Wl,--no-warn-rwx-segments -Wl,-z,noexecstack
OS_OBJECTS := $(patsubst %,$(OUT)/%.o,$(wildcard core/*.c) arch/aarch64/arch.c arch/aarch64/start.S) \
	$(OUT)/monitor/core/sha256.c.o $(OUT)/monitor/arch/aarch64/memory.c.o

image: build/secure_os.bin ## the secure OS's image

build/secure_os.bin: $(OUT)/secure_os.elf
	@$(CROSS_COMPILE)objcopy -O binary $< $@

$(OUT)/secure_os.elf: $(OS_OBJECTS) plat/qemu_virt/secure_os.ld
	@echo "  LINK $@"
	@$(CROSS_COMPILE)gcc $(OS_LINK) -T plat/qemu_virt/secure_os.ld $(OS_OBJECTS) -o $@

$(OUT)/monitor/%.o: ../monitor/%
	@mkdir -p $(@D)
	@echo "  CC   $@"
	@$(CROSS_COMPILE)gcc $(OS_FLAGS) -c $< -o $@

$(OUT)/%.o: %
	@mkdir -p $(@D)
	@echo "  CC   $@"
	@$(CROSS_COMPILE)gcc $(OS_FLAGS) -c $< -o $@

-include $(shell find $(OUT) -name '*.d' 2>/dev/null)
