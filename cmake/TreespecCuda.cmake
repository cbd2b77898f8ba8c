# SPDX-License-Identifier: Apache-2.0
# Finds the CUDA compiler as TREESPEC_CUDA asks and sets treespec_with_cuda.
# CMAKE_CUDA_ARCHITECTURES or the environment variable CUDAARCHS replace the default architectures.
set(treespec_with_cuda OFF)
if(TREESPEC_CUDA STREQUAL "OFF" OR (TREESPEC_CUDA STREQUAL "AUTO" AND NOT cuda_sources))
  return()
endif()

include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(TREESPEC_CUDA STREQUAL "ON")
    message(FATAL_ERROR "TREESPEC_CUDA=ON but no CUDA compiler was found; put nvcc on PATH or set "
                        "CUDACXX, or use TREESPEC_CUDA=OFF")
  endif()
  message(STATUS "treespec: no CUDA compiler found, building for the CPU alone")
  return()
endif()

if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --version OUTPUT_VARIABLE nvcc_version)
  string(REGEX MATCH "release ([0-9.]+)" _ "${nvcc_version}")
  # The last one has no -real, so its PTX also serves GPUs that come later.
  if(CMAKE_MATCH_1 VERSION_LESS 12.8)
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90)
  else()
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100-real 120)
  endif()
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
set(treespec_with_cuda ON)
message(STATUS "treespec: CUDA ${CMAKE_CUDA_COMPILER_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}")
