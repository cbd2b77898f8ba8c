# SPDX-License-Identifier: Apache-2.0
# Components of the package: exported models on a runtime. They are sources, compiled in the project
# that uses them, against the runtime it has. TREESPEC_BACKENDS_DIR is the folder of the sources.

if(POLICY CMP0144)
  cmake_policy(SET CMP0144 NEW)  # ONNXRUNTIME_ROOT is read
endif()

# A static library `treespec::<name>` of the sources in a folder.
function(treespec_backend_library name folder)
  file(GLOB sources CONFIGURE_DEPENDS ${TREESPEC_BACKENDS_DIR}/${folder}/*.cc)
  add_library(treespec_${name} STATIC ${sources})
  add_library(treespec::${name} ALIAS treespec_${name})
  set_target_properties(treespec_${name} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  target_compile_features(treespec_${name} PUBLIC cxx_std_17)
  target_include_directories(treespec_${name}
    PUBLIC ${TREESPEC_BACKENDS_DIR}/include PRIVATE ${TREESPEC_BACKENDS_DIR}/src)
endfunction()

# What all runtimes share. Sets `result` to what is missing, or to nothing.
function(treespec_exported_models result)
  find_package(nlohmann_json 3.9 CONFIG QUIET)
  if(NOT nlohmann_json_FOUND)
    set(${result} "nlohmann_json was not found: install it (Debian: nlohmann-json3-dev) or set \
nlohmann_json_DIR" PARENT_SCOPE)
    return()
  endif()
  if(NOT TARGET treespec::exported_models)
    treespec_backend_library(exported_models src)
    target_link_libraries(treespec_exported_models
      PUBLIC treespec::core PRIVATE nlohmann_json::nlohmann_json)
  endif()
  set(${result} "" PARENT_SCOPE)
endfunction()

# A component is a function `treespec_component_<name>(result)`, with a result as above.
function(treespec_component_onnxruntime result)
  treespec_exported_models(missing)
  find_package(ONNXRuntime MODULE QUIET)
  if(NOT ONNXRuntime_FOUND)
    set(missing "ONNX Runtime was not found: set ONNXRUNTIME_ROOT to an unpacked release archive, \
or ONNXRUNTIME_INCLUDE_DIR to the folder of onnxruntime_cxx_api.h and ONNXRUNTIME_LIBRARY to \
libonnxruntime.so")
  endif()
  if(NOT missing AND NOT TARGET treespec::onnxruntime)
    treespec_backend_library(onnxruntime onnxruntime)
    target_link_libraries(treespec_onnxruntime
      PUBLIC treespec::exported_models PRIVATE ONNXRuntime::ONNXRuntime)
  endif()
  set(${result} "${missing}" PARENT_SCOPE)
endfunction()

function(treespec_component_tensorrt result)
  treespec_exported_models(missing)
  find_package(TensorRT 10.15 MODULE QUIET)
  find_package(CUDAToolkit QUIET)
  if(NOT TensorRT_FOUND)
    set(missing "TensorRT 10.15 or later was not found: set TensorRT_ROOT to an unpacked release \
archive, or TensorRT_INCLUDE_DIR to the folder of NvInfer.h and TensorRT_LIBRARY to libnvinfer.so")
  elseif(NOT CUDAToolkit_FOUND)
    set(missing "the CUDA toolkit was not found: put nvcc on PATH or set CUDAToolkit_ROOT")
  elseif(NOT treespec_with_cuda AND NOT TREESPEC_WITH_CUDA)
    set(missing "treespec was built without CUDA, which moves accepted rows: build it with \
TREESPEC_CUDA=ON")
  endif()
  if(NOT missing AND NOT TARGET treespec::tensorrt)
    treespec_backend_library(tensorrt tensorrt)
    target_link_libraries(treespec_tensorrt PUBLIC treespec::exported_models
      PRIVATE TensorRT::nvinfer CUDA::cudart_static nlohmann_json::nlohmann_json)
  endif()
  set(${result} "${missing}" PARENT_SCOPE)
endfunction()
