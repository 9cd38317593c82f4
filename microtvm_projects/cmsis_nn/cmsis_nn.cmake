# CMSIS-NN for the layers that the policy leaves to it. CMSIS_NN_PATH is a checkout of yours:
#   git clone https://github.com/ARM-software/CMSIS-NN
set(CMSIS_NN_PATH "$ENV{CMSIS_NN_PATH}" CACHE PATH "A checkout of CMSIS-NN")
if(NOT CMSIS_NN_PATH)
  message(FATAL_ERROR "the policy calls CMSIS-NN: set CMSIS_NN_PATH to a checkout of it, ${CMSIS_NN_SINCE} or newer")
endif()
foreach(file Include/arm_nnfunctions.h ${CMSIS_NN_SOURCES})
  if(NOT EXISTS "${CMSIS_NN_PATH}/${file}")
    message(FATAL_ERROR "no ${file} in CMSIS_NN_PATH=${CMSIS_NN_PATH}: the policy needs CMSIS-NN ${CMSIS_NN_SINCE} or newer")
  endif()
endforeach()

list(TRANSFORM CMSIS_NN_SOURCES PREPEND "${CMSIS_NN_PATH}/")
add_library(cmsis_nn STATIC ${CMSIS_NN_SOURCES})
target_include_directories(cmsis_nn SYSTEM PUBLIC "${CMSIS_NN_PATH}/Include")
# Its own dialect, and its warnings are its authors' business.
target_compile_options(cmsis_nn PRIVATE -std=gnu11 -w -ffunction-sections)
