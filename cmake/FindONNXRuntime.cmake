# SPDX-License-Identifier: Apache-2.0
# Finds ONNX Runtime and gives the target ONNXRuntime::ONNXRuntime. To say where it is:
#
#   ONNXRUNTIME_ROOT         an unpacked release archive (also as an environment variable), or
#   ONNXRUNTIME_INCLUDE_DIR  the folder with onnxruntime_cxx_api.h, and
#   ONNXRUNTIME_LIBRARY      libonnxruntime.so; that of the PyPI wheel, which has no headers, will do
find_path(ONNXRUNTIME_INCLUDE_DIR onnxruntime_cxx_api.h
  HINTS ${ONNXRUNTIME_ROOT} ENV ONNXRUNTIME_ROOT
  PATH_SUFFIXES include include/onnxruntime onnxruntime)
find_library(ONNXRUNTIME_LIBRARY onnxruntime
  HINTS ${ONNXRUNTIME_ROOT} ENV ONNXRUNTIME_ROOT PATH_SUFFIXES lib lib64)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(ONNXRuntime
  REQUIRED_VARS ONNXRUNTIME_LIBRARY ONNXRUNTIME_INCLUDE_DIR)
mark_as_advanced(ONNXRUNTIME_INCLUDE_DIR ONNXRUNTIME_LIBRARY)

if(ONNXRuntime_FOUND AND NOT TARGET ONNXRuntime::ONNXRuntime)
  set(location ${ONNXRUNTIME_LIBRARY})
  # A wheel has the file, but not the name that programs load it by.
  get_filename_component(name ${location} NAME)
  if(name MATCHES "^(libonnxruntime\\.so\\.[0-9]+)\\.")
    set(loaded_as ${CMAKE_MATCH_1})
    get_filename_component(folder ${location} DIRECTORY)
    if(NOT EXISTS ${folder}/${loaded_as})
      file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/onnxruntime)
      file(CREATE_LINK ${location} ${CMAKE_BINARY_DIR}/onnxruntime/${loaded_as} SYMBOLIC)
      set(location ${CMAKE_BINARY_DIR}/onnxruntime/${loaded_as})
    endif()
  endif()
  add_library(ONNXRuntime::ONNXRuntime UNKNOWN IMPORTED GLOBAL)
  set_target_properties(ONNXRuntime::ONNXRuntime PROPERTIES
    IMPORTED_LOCATION ${location}
    INTERFACE_INCLUDE_DIRECTORIES ${ONNXRUNTIME_INCLUDE_DIR})
endif()
