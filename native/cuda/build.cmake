# Configures and builds ./CMakeLists.txt, and never fails: without a CUDA compiler that works there is no
# libedgeblt_cuda, and that is all.
find_program(nvcc nvcc PATHS $ENV{CUDA_PATH}/bin /usr/local/cuda/bin)
if(NOT nvcc AND NOT DEFINED ENV{CUDACXX})
  message("libedgeblt_cuda is not built: there is no nvcc")
  file(REMOVE ${BUILD}/libedgeblt_cuda.so)
  return()
endif()
if(NOT DEFINED ENV{CUDACXX})
  set(ENV{CUDACXX} ${nvcc})
endif()
execute_process(
  COMMAND ${CMAKE_COMMAND} -S ${SOURCE} -B ${BUILD} -G ${GENERATOR} -DCMAKE_MAKE_PROGRAM=${MAKE_PROGRAM}
    -DCMAKE_CXX_COMPILER=${CXX_COMPILER} -DCMAKE_BUILD_TYPE=${BUILD_TYPE}
  RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(result EQUAL 0)
  execute_process(COMMAND ${CMAKE_COMMAND} --build ${BUILD}
    RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
endif()
if(result EQUAL 0)
  message("libedgeblt_cuda is built")
else()
  file(REMOVE ${BUILD}/libedgeblt_cuda.so)  # of an earlier build
  message("libedgeblt_cuda is not built: $ENV{CUDACXX} failed; all else goes on.\n${output}")
endif()
