# SPDX-License-Identifier: Apache-2.0
# Finds the runtime of NVIDIA TensorRT and gives the target TensorRT::nvinfer and the variable
# TensorRT_VERSION. To say where it is:
#
#   TensorRT_ROOT         an unpacked release archive (also as an environment variable), or
#   TensorRT_INCLUDE_DIR  the folder with NvInfer.h, and
#   TensorRT_LIBRARY      libnvinfer.so; that of the PyPI wheels, which have no headers, will do
set(_hints ${TensorRT_ROOT} ENV TensorRT_ROOT)
find_path(TensorRT_INCLUDE_DIR NvInfer.h HINTS ${_hints}
  PATH_SUFFIXES include include/${CMAKE_LIBRARY_ARCHITECTURE})
find_library(TensorRT_LIBRARY NAMES nvinfer libnvinfer.so.11 libnvinfer.so.10 HINTS ${_hints}
  PATH_SUFFIXES lib lib64)
unset(_hints)

if(TensorRT_INCLUDE_DIR AND EXISTS ${TensorRT_INCLUDE_DIR}/NvInferVersion.h)
  file(STRINGS ${TensorRT_INCLUDE_DIR}/NvInferVersion.h _lines
    REGEX "#define (TRT_[A-Z]+_ENTERPRISE|NV_TENSORRT_[A-Z]+) [0-9]+")
  foreach(_part MAJOR MINOR PATCH)
    string(REGEX MATCH "(TRT_${_part}_ENTERPRISE|NV_TENSORRT_${_part}) ([0-9]+)" _ "${_lines}")
    list(APPEND _version ${CMAKE_MATCH_2})
  endforeach()
  list(JOIN _version "." TensorRT_VERSION)
  unset(_version)
  unset(_lines)
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(TensorRT
  REQUIRED_VARS TensorRT_LIBRARY TensorRT_INCLUDE_DIR VERSION_VAR TensorRT_VERSION)
mark_as_advanced(TensorRT_INCLUDE_DIR TensorRT_LIBRARY)

if(TensorRT_FOUND AND NOT TARGET TensorRT::nvinfer)
  add_library(TensorRT::nvinfer UNKNOWN IMPORTED GLOBAL)
  set_target_properties(TensorRT::nvinfer PROPERTIES
    IMPORTED_LOCATION ${TensorRT_LIBRARY}
    INTERFACE_INCLUDE_DIRECTORIES ${TensorRT_INCLUDE_DIR})
endif()
