# SPDX-License-Identifier: Apache-2.0
# Finds the CUDA compiler as TREESPEC_CUDA asks and sets treespec_with_cuda.
# CMAKE_CUDA_ARCHITECTURES or the environment variable CUDAARCHS replace the default architectures.
# treespec_cuda_code: how nvcc is told of these.
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

# The kernels use nothing that is newer than sm_80, so the front end runs once: its PTX becomes the
# code of every GPU named here and comes along for all others.
set(treespec_cuda_code "")
set(cuda_code ${CMAKE_CUDA_ARCHITECTURES} $ENV{CUDAARCHS})
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --version OUTPUT_VARIABLE nvcc_version)
  string(REGEX MATCH "release ([0-9.]+)" _ "${nvcc_version}")
  set(cuda_code compute_80,sm_80,sm_90)
  if(CMAKE_MATCH_1 VERSION_GREATER_EQUAL 12.8)
    string(APPEND cuda_code ,sm_100,sm_120)
  endif()
  set(treespec_cuda_code "--generate-code=arch=compute_80,code=[${cuda_code}]")
  set(CMAKE_CUDA_ARCHITECTURES OFF)
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
set(treespec_with_cuda ON)
message(STATUS "treespec: CUDA ${CMAKE_CUDA_COMPILER_VERSION} for ${cuda_code}")
