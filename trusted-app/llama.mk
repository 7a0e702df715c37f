# llama.cpp for the machine's CPUs: $(LIBRARY)/libllama.a. It is built again when this file changes, which takes minutes: what
# is only for our own sources stands in Makefile.
CC := $(CROSS_COMPILE)gcc
CXX := $(CROSS_COMPILE)g++
AR := $(CROSS_COMPILE)ar

.PHONY: library kernels core models

# ---- how -------------------------------------------------------------------------------------------------------
# Kernels without dot products are ten times slower; without fp16 a KV cache of halves is.
MACHINE := -march=armv8.2-a+dotprod+fp16+crypto
HARDENING := -fstack-protector-strong -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2
COMMON := $(MACHINE) $(HARDENING) -fno-pie -pthread -ffunction-sections -fdata-sections -DNDEBUG \
	-ffile-prefix-map=$(LLAMA)=llama.cpp -ffile-prefix-map=$(abspath $(LIBRARY))=llama
C := $(CC) -std=gnu11 $(COMMON)
CPP := $(CXX) -std=gnu++17 $(COMMON)

# Of others' code, warnings are not for us to act on. It is built for one CPU, has no OpenMP, and loads no library. Its scheduler
# keeps room for so many tensors at each node that another backend computed. Here is one backend, so there is none of them.
GGML := $(LLAMA)/ggml/src
FOREIGN := -w -I$(LIBRARY)/include -I$(LLAMA)/include -I$(LLAMA)/src -I$(LLAMA)/ggml/include -I$(GGML) -I$(GGML)/ggml-cpu \
	-D_GNU_SOURCE -D_XOPEN_SOURCE=600 -DGGML_SCHED_MAX_COPIES=4 \
	-DGGML_SCHED_MAX_SPLIT_INPUTS=1 -DGGML_USE_CPU -DGGML_USE_CPU_REPACK

# ---- what of llama.cpp ------------------------------------------------------------------------------------------
# ggml-backend-dl.cpp (libraries loaded at run time) and ggml.cpp (a debugger for a crash) are left out.
KERNELS := ggml-cpu/ggml-cpu.c ggml-cpu/ggml-cpu.cpp ggml-cpu/repack.cpp ggml-cpu/quants.c ggml-cpu/traits.cpp \
	ggml-cpu/tiled/tiled.cpp ggml-cpu/tiled/tiled-kernel.cpp ggml-cpu/binary-ops.cpp ggml-cpu/unary-ops.cpp ggml-cpu/vec.cpp \
	ggml-cpu/ops.cpp ggml-cpu/arch/arm/quants.c ggml-cpu/arch/arm/repack.cpp
BASE := ggml.c ggml-alloc.c ggml-backend.cpp ggml-backend-meta.cpp ggml-backend-reg.cpp ggml-opt.cpp ggml-quants.c \
	ggml-threading.cpp gguf.cpp
# In the order of llama.cpp's own build, which compiles them by sixteen as one: eight of a group compile as one, too.
CORE := llama adapter arch batch chat context cparams grammar graph hparams impl io kv-cache kv-cache-iswa kv-cache-dsa \
	kv-cache-dsa-iswa kv-cache-msa kv-cache-dsv4 memory memory-hybrid memory-hybrid-iswa memory-hybrid-idx memory-recurrent \
	mmap model-loader model-saver model quant sampler vocab unicode-data unicode
CORE := $(foreach each,$(CORE),$(wildcard $(LLAMA)/src/llama-$(each).cpp $(LLAMA)/src/$(each).cpp))
MODELS := $(sort $(wildcard $(LLAMA)/src/models/*.cpp))

GROUP := 8
group = $(wordlist $(shell expr $(1) \* $(GROUP) - $(GROUP) + 1),$(shell expr $(1) \* $(GROUP)),$(2))
numbers = $(shell seq 1 $$(( ($(words $(1)) + $(GROUP) - 1) / $(GROUP) )))

KERNEL_OBJECTS := $(KERNELS:%=$(LIBRARY)/ggml/%.o)
BASE_OBJECTS := $(BASE:%=$(LIBRARY)/ggml/%.o)
CORE_OBJECTS := $(foreach n,$(call numbers,$(CORE)),$(LIBRARY)/groups/core-$(n).o)
MODEL_OBJECTS := $(foreach n,$(call numbers,$(MODELS)),$(LIBRARY)/groups/models-$(n).o)

kernels: $(KERNEL_OBJECTS) $(BASE_OBJECTS)
core: $(CORE_OBJECTS)
models: $(MODEL_OBJECTS)
library: $(LIBRARY)/libllama.a

$(LIBRARY)/libllama.a: $(KERNEL_OBJECTS) $(BASE_OBJECTS) $(CORE_OBJECTS) $(MODEL_OBJECTS)
	rm -f $@
	$(AR) rcsD $@ $^

# Graphs are computed by kernels; what builds them runs once for each of them, and is most of the text.
$(KERNEL_OBJECTS): OPTIMISE := -O3
$(BASE_OBJECTS) $(CORE_OBJECTS): OPTIMISE := -O2
$(MODEL_OBJECTS): OPTIMISE := -Os

VERSIONS := $(LIBRARY)/include/ggml-version.h $(LIBRARY)/include/llama-version.h
$(LIBRARY)/include/ggml-version.h: $(GGML)/ggml-version.h.in
$(LIBRARY)/include/llama-version.h: $(LLAMA)/src/llama-version.h.in
$(VERSIONS):
	@mkdir -p $(@D)
	sed 's/@[A-Z_]*@/pinned/' $< > $@

$(LIBRARY)/ggml/%.c.o: $(GGML)/%.c | $(VERSIONS)
	@mkdir -p $(@D)
	$(C) $(OPTIMISE) $(FOREIGN) -c $< -o $@

$(LIBRARY)/ggml/%.cpp.o: $(GGML)/%.cpp | $(VERSIONS)
	@mkdir -p $(@D)
	$(CPP) $(OPTIMISE) $(FOREIGN) -c $< -o $@

$(LIBRARY)/groups/core-%.cpp: | $(VERSIONS)
	@mkdir -p $(@D)
	printf '#include "%s"\n' $(call group,$*,$(CORE)) > $@

$(LIBRARY)/groups/models-%.cpp: | $(VERSIONS)
	@mkdir -p $(@D)
	printf '#include "%s"\n' $(call group,$*,$(MODELS)) > $@

$(LIBRARY)/groups/%.o: $(LIBRARY)/groups/%.cpp
	$(CPP) $(OPTIMISE) $(FOREIGN) -c $< -o $@
.PRECIOUS: $(LIBRARY)/groups/%.cpp
