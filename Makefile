# weft: see README.md. `make demo` and `make test` are all a newcomer needs.
#
#   make            the program, build/weft
#   make demo       two adapters, found among 51, in one picture, three ways: demo.png
#   make test       every test            make san    the same under ASan and UBSan
#   make check      format, include directions, warnings, cppcheck
#   make fuzz       a million executions of each parser, with coverage
#   make torture    kills, full disks and crowds for repository and queue (KILLS=20: a short one)
#   make test-slurm a cluster of this machine alone renders an array of batches (root)
#   make bench      what this machine does, beside its limits
#   make cuda       the program with NVIDIA GPUs beside the CPU (needs nvcc, cuBLASLt, cuDNN 9.13 or newer)
#   make test-cuda  every op, network and strategy on the GPU; without one, on a processor that acts as one
#   make deps       the packages weft is built from
#   make install    PREFIX=/usr/local

.DEFAULT_GOAL := all

CONFIG ?= release
PREFIX ?= /usr/local
B      := build/$(CONFIG)

WARN := -Wall -Wextra -Wpedantic -Wshadow -Wvla -Wwrite-strings -Wmissing-prototypes \
        -Wstrict-prototypes -fno-common $(if $(CI),-Werror)
DEFINES := -I. -D_GNU_SOURCE -DWEFT_PREFIX='"$(PREFIX)"' -MMD -MP
# FAISS is a static library, its C API and its distances built by `make deps`; the matrix products it wants are
# OpenBLAS's, which LAPACK brings along anyway.
FAISS    := build/deps/faiss_simd.o build/deps/libfaiss_c.a
LIBS     := $(FAISS) -lfaiss -lstdc++ -lsqlite3 -ldnnl -llapack -lopenblas -lpng -lfreetype -ljansson -lpcre2-8 -lutf8proc -lcrypto -lz -lm

CFLAGS_release := -O2 -g
CFLAGS_san     := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all \
                  -fno-omit-frame-pointer
CFLAGS_fuzz    := -O1 -g -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all \
                  -fprofile-instr-generate -fcoverage-mapping
CFLAGS_check   := $(CFLAGS_release)
CC_release := gcc
CC_check   := gcc
CC_san     := gcc
CC_fuzz    := clang
CC         := $(CC_$(CONFIG))
# What must be there; a user's own CPPFLAGS, CFLAGS and LDFLAGS come behind it.
FLAGS      := -std=c11 $(CFLAGS_$(CONFIG)) $(WARN) -fopenmp
# The vector kernels are one source compiled for each instruction set; contraction is what fma is.
$(B)/unet/cpu/kernels_%.o: FLAGS += -O3 -ffp-contract=fast
ifeq ($(shell uname -m),x86_64)
$(B)/unet/cpu/kernels_avx512.o: FLAGS += -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c \
                                          -mprefer-vector-width=512
$(B)/unet/cpu/kernels_avx2.o: FLAGS += -mavx2 -mfma -mf16c
endif

LIB_SRC  := $(wildcard unet/*.c unet/cpu/*.c store/*.c retrieve/*.c compose/*.c)
CLI_SRC  := $(wildcard cli/*.c)
TEST_SRC := $(wildcard tests/*.c)
LIB_OBJ  := $(LIB_SRC:%.c=$(B)/%.o)
CLI_OBJ  := $(CLI_SRC:%.c=$(B)/%.o)
TEST_OBJ := $(TEST_SRC:%.c=$(B)/%.o)
WEFT     := $(if $(filter release,$(CONFIG)),build/weft,$(B)/weft)
TESTS    := $(B)/weft-tests

# ---- CUDA: `make cuda`, or CUDA=1 with any target --------------------------------------------------
# The same program with one backend more: its own list of backends, the kernels by nvcc, the rest from libweft.a.
CUDA_HOME ?= $(patsubst %/bin/nvcc,%,$(realpath $(shell command -v nvcc)))
CUDA_SRC  := $(wildcard unet/cuda/*.c)
CUDA_CU   := $(wildcard unet/cuda/*.cu)
NVCCFLAGS := -std=c++17 -O3 -Xfatbin -compress-all -gencode arch=compute_80,code=sm_80 \
             -gencode arch=compute_90,code=[sm_90,compute_90] -Xcompiler -Wall,-Wextra $(if $(CI),-Werror all-warnings)
CUDA_OBJ  := $(B)/cuda/unet/backend.o $(CUDA_SRC:%.c=$(B)/cuda/%.o) $(CUDA_CU:%.cu=$(B)/cuda/%.cu.o)
CUDA_LIBS := -L$(CUDA_HOME)/lib64 -lcublasLt -lcudnn -lcudart_static -ldl -lrt -lpthread

# And the same files compiled for tests on a processor that does what a GPU would (tests/cuda/emulator).
EMULATED_SRC := $(filter-out %/selftest.cpp,$(wildcard tests/cuda/emulator/*.cpp))
EMULATED_OBJ := $(B)/emulated/unet/backend.o $(CUDA_SRC:%.c=$(B)/emulated/%.o) \
                $(CUDA_CU:%.cu=$(B)/emulated/%.cu.o) $(EMULATED_SRC:%.cpp=$(B)/emulated/%.cpp.o)
CUDA_TEST_OBJ := $(patsubst %.c,$(B)/%.o,$(wildcard tests/cuda/*.c))
CUDA_ASK_OBJ := $(patsubst %.c,$(B)/cuda/%.o,$(wildcard tests/cuda/ask/*.c) unet/cuda/dnn.c unet/cuda/convolve.c)

# Which backends the program was last linked with: another answer links it anew.
BACKENDS := $(B)/backends$(if $(CUDA),-cuda,-cpu)
$(BACKENDS):
	@mkdir -p $(@D)
	@rm -f $(B)/backends-*
	@touch $@

# `make V=1` shows whole commands.
ifeq ($(V),)
.SILENT:
say = @echo "  $(1)  $@"
endif

.PHONY: all
all: $(WEFT)

$(WEFT): $(CLI_OBJ) $(if $(CUDA),$(CUDA_OBJ)) $(B)/libweft.a $(BACKENDS) | $(FAISS)
	$(call say,LD)
	$(CC) $(FLAGS) $(LDFLAGS) -o $@ $(filter-out $(BACKENDS),$^) $(if $(CUDA),$(CUDA_LIBS)) $(LIBS)

$(B)/libweft.a: $(LIB_OBJ)
	$(call say,AR)
	@rm -f $@
	ar rcs $@ $^

$(TESTS): $(TEST_OBJ) $(B)/libweft.a | $(FAISS)
	$(call say,LD)
	$(CC) $(FLAGS) $(LDFLAGS) -o $@ $^ $(LIBS) -lcriterion

$(FAISS) &:
	.ci/deps

$(B)/%.o: %.c Makefile
	$(call say,CC)
	@mkdir -p $(@D)
	$(CC) $(DEFINES) $(FLAGS) $(CPPFLAGS) $(CFLAGS) -c -o $@ $<

$(B)/cuda/%.o $(B)/emulated/%.o: DEFINES += -DWEFT_CUDA
$(B)/cuda/%.o: %.c Makefile
	$(call say,CC)
	@mkdir -p $(@D)
	$(CC) $(DEFINES) -isystem $(CUDA_HOME)/include $(FLAGS) $(CPPFLAGS) $(CFLAGS) -c -o $@ $<
$(B)/cuda/%.cu.o: %.cu Makefile
	$(call say,NVCC)
	@mkdir -p $(@D)
	nvcc $(NVCCFLAGS) -Iunet/cuda/device -Iunet/cuda -I. -D_GNU_SOURCE -MD -MP -c -o $@ $<

# A quarter fewer instructions in the loop over keys; weights that small are none.
$(B)/cuda/unet/cuda/attention.cu.o: NVCCFLAGS += -ftz=true

# The emulator has headers of its own by NVIDIA's names. Contraction as nvcc has it.
EMULATED_CXX := g++ -std=c++17 $(CFLAGS_$(CONFIG)) -ffp-contract=fast -Wall -Wextra -fopenmp \
                -Itests/cuda/emulator -Iunet/cuda $(DEFINES) $(if $(CI),-Werror)
$(B)/emulated/%.o: %.c Makefile
	$(call say,CC)
	@mkdir -p $(@D)
	$(CC) $(DEFINES) -Itests/cuda/emulator $(FLAGS) $(CPPFLAGS) $(CFLAGS) -c -o $@ $<
$(B)/emulated/%.cu.o: %.cu Makefile
	$(call say,CXX)
	@mkdir -p $(@D)
	$(EMULATED_CXX) -x c++ -c -o $@ $<
$(B)/emulated/%.cpp.o: %.cpp Makefile
	$(call say,CXX)
	@mkdir -p $(@D)
	$(EMULATED_CXX) -c -o $@ $<

$(B)/weft-test-cuda: $(CUDA_TEST_OBJ) $(CUDA_OBJ) $(B)/libweft.a | $(FAISS)
	$(call say,LD)
	$(CC) $(FLAGS) $(LDFLAGS) -o $@ $^ $(CUDA_LIBS) $(LIBS)
# Of the backend only what plans convolutions; the choices are looked at on their way.
$(B)/weft-ask-cudnn: $(CUDA_ASK_OBJ) $(B)/libweft.a | $(FAISS)
	$(call say,LD)
	$(CC) $(FLAGS) $(LDFLAGS) -Wl,--wrap=dnn_plan -o $@ $^ -L$(CUDA_HOME)/lib64 -lcudnn $(LIBS)
$(B)/weft-test-emulated: $(CUDA_TEST_OBJ) $(EMULATED_OBJ) $(B)/libweft.a | $(FAISS)
	$(call say,LD)
	$(CC) $(FLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)
$(B)/emulator-selftest: $(B)/emulated/tests/cuda/emulator/selftest.cpp.o $(EMULATED_SRC:%.cpp=$(B)/emulated/%.cpp.o)
	$(call say,LD)
	g++ $(CFLAGS_$(CONFIG)) -fopenmp $(LDFLAGS) -o $@ $^
$(B)/weft-emulated: $(CLI_OBJ) $(EMULATED_OBJ) $(B)/libweft.a | $(FAISS)
	$(call say,LD)
	$(CC) $(FLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

# Schemas of databases and pages for browsers as bytes of C arrays.
TO_BYTES = @mkdir -p $(@D); od -An -v -td1 $< | sed 's/-*[0-9][0-9]*/&,/g' >$@.new && mv $@.new $@
$(B)/%.inc: %.sql
	$(TO_BYTES)
$(B)/%.inc: %.html
	$(TO_BYTES)
$(B)/store/repo.o: $(B)/store/schema.inc
$(B)/store/queue.o: $(B)/store/queue.inc
$(B)/cli/catalog.o: $(B)/cli/catalog.inc
$(B)/cli/gallery.o: $(B)/cli/gallery.inc
$(B)/store/repo.o $(B)/store/queue.o $(B)/cli/catalog.o $(B)/cli/gallery.o: FLAGS += -I$(B)
$(B)/unet/pen.o: FLAGS += -isystem /usr/include/freetype2

-include $(CUDA_OBJ:.o=.d) $(EMULATED_OBJ:.o=.d) $(CUDA_TEST_OBJ:.o=.d) $(CUDA_ASK_OBJ:.o=.d)
-include $(LIB_OBJ:.o=.d) $(CLI_OBJ:.o=.d) $(TEST_OBJ:.o=.d) $(wildcard $(B)/tests/fuzz/*.d)

# ---- what people type ------------------------------------------------------------------------

.PHONY: deps
deps:
	@.ci/deps

.PHONY: demo
demo: deps
	@$(MAKE) --no-print-directory -j$$(nproc) all
	rm -rf build/demo && mkdir -p build/demo/files
	for f in assets/adapters/*.safetensors; do \
	    cp $$f build/demo/files/$$(sha256sum $$f | cut -c1-8).safetensors; done
	build/weft add build/demo/files --home build/demo/home >build/demo/added
	@tail -1 build/demo/added
	$(DEMO)
	@echo 'demo.png was made by'
	@echo '    $(DEMO)'
DEMO := build/weft compare "a kite on the left and a lantern on the right" --auto -v \
        --home build/demo/home --compose none --compose merge --compose gated:uncond=base \
        --seed 1 --cfg 2 --cell 384 -o demo.png

.PHONY: test
test: deps
	@$(MAKE) --no-print-directory -j$$(nproc) $(WEFT) $(TESTS) $(B)/weft-test-emulated
	@.ci/test-emulated $(B)/weft-test-emulated
	@.ci/test $(WEFT) $(TESTS)

.PHONY: cuda
cuda: deps
	@command -v nvcc >/dev/null || { echo 'make cuda: nvcc is not on PATH; it comes with the CUDA toolkit' >&2; exit 1; }
	@$(MAKE) --no-print-directory -j$$(nproc) CUDA=1 all

.PHONY: test-cuda
test-cuda: deps
	@.ci/test-cuda

.PHONY: san
san: deps
	@$(MAKE) --no-print-directory -j$$(nproc) CONFIG=san san-run
.PHONY: san-run
san-run: $(WEFT) $(TESTS) $(B)/weft-test-emulated
	@$(if $(SUITES),,.ci/test-emulated $(B)/weft-test-emulated)
	@.ci/test --san $(WEFT) $(TESTS) $(SUITES)

.PHONY: check
check: deps
	@.ci/check

.PHONY: fuzz
fuzz: deps
	@.ci/deps --check
	@$(MAKE) --no-print-directory -j$$(nproc) CONFIG=fuzz fuzz-build
	@.ci/fuzz $(or $(RUNS),1000000)
FUZZ_SRC := $(wildcard tests/fuzz/*.c)
.PHONY: fuzz-build
fuzz-build: $(FUZZ_SRC:tests/fuzz/%.c=$(B)/%)
$(B)/fuzz_%: $(B)/tests/fuzz/fuzz_%.o $(B)/libweft.a | $(FAISS)
	$(call say,LD)
	$(CC) $(FLAGS) $(LDFLAGS) -fsanitize=fuzzer -o $@ $^ $(LIBS)

.PHONY: torture
torture: all
	@.ci/torture
	@.ci/torture-batch

.PHONY: test-slurm
test-slurm: all
	@.ci/slurm

.PHONY: bench
bench: all
	build/weft bench

.PHONY: clean
clean:
	rm -rf build/release build/san build/fuzz build/check build/weft
.PHONY: distclean
distclean:
	rm -rf build

.PHONY: install
install: all
	install -D -m 755 build/weft $(DESTDIR)$(PREFIX)/bin/weft
	mkdir -p $(DESTDIR)$(PREFIX)/share/weft
	cp -r assets/model assets/scorer assets/retriever assets/gates assets/adapters $(DESTDIR)$(PREFIX)/share/weft/
