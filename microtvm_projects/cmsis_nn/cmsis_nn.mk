# CMSIS-NN for the layers that the policy leaves to it. CMSIS_NN_PATH is a checkout of yours:
#   git clone https://github.com/ARM-software/CMSIS-NN
CMSIS_NN_PATH ?=
# Another compiler for it: clang makes Helium kernels of fewer instructions than GCC. As in
#   make CMSIS_NN_CC="clang --target=arm-none-eabi --sysroot=/usr/lib/arm-none-eabi"
CMSIS_NN_CC ?= $(CC)

ifneq ($(MAKECMDGOALS),clean)
ifeq ($(CMSIS_NN_PATH),)
$(error the policy calls CMSIS-NN: set CMSIS_NN_PATH to a checkout of it, $(CMSIS_NN_SINCE) or newer)
endif
$(foreach file,Include/arm_nnfunctions.h $(CMSIS_NN_SOURCES),$(if $(wildcard $(CMSIS_NN_PATH)/$(file)),,\
	$(error no $(file) in CMSIS_NN_PATH=$(CMSIS_NN_PATH): the policy needs CMSIS-NN $(CMSIS_NN_SINCE) or newer)))
# Another checkout or compiler makes another library: objects are older than the file that names both.
CMSIS_NN_MADE_OF = $(CMSIS_NN_PATH) by $(CMSIS_NN_CC)
$(shell mkdir -p out/cmsis_nn; echo '$(CMSIS_NN_MADE_OF)' | cmp -s - out/cmsis_nn/path || echo '$(CMSIS_NN_MADE_OF)' >out/cmsis_nn/path)
endif

.DEFAULT_GOAL = all
CMSIS_NN_CFLAGS = -isystem $(CMSIS_NN_PATH)/Include
CMSIS_NN_OBJECTS = $(patsubst Source/%,out/cmsis_nn/%.o,$(CMSIS_NN_SOURCES))

# Its own dialect, and its warnings are its authors' business. Only GCC writes call graphs.
CMSIS_NN_NOT_ASKED = $(if $(filter $(CC),$(CMSIS_NN_CC)),,$(STACK_USAGE))
out/cmsis_nn/%.c.o: $(CMSIS_NN_PATH)/Source/%.c Makefile out/cmsis_nn/path
	@mkdir -p $(@D)
	$(CMSIS_NN_CC) $(filter-out $(CMSIS_NN_NOT_ASKED),$(ALL_CFLAGS)) -std=gnu11 -w -c $< -o $@
