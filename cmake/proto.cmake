# shoal_proto(TARGET file.proto...): generates protobuf-c code into the build tree, under
# generated/<path of the proto>, so that sources include "shoal/v1/jobs.pb-c.h". It also writes one
# serialized FileDescriptorSet per target, which server reflection serves.
find_program(PROTOC_C protoc-c REQUIRED)
find_program(PROTOC protoc REQUIRED)

function(shoal_proto target)
  set(out ${CMAKE_BINARY_DIR}/generated)
  file(MAKE_DIRECTORY ${out})
  set(sources)
  set(protos)
  foreach(proto ${ARGN})
    string(REGEX REPLACE "\\.proto$" "" stem ${proto})
    add_custom_command(
      OUTPUT ${out}/${stem}.pb-c.c ${out}/${stem}.pb-c.h
      COMMAND ${PROTOC_C} --c_out=${out} -I${CMAKE_SOURCE_DIR}/proto ${CMAKE_SOURCE_DIR}/proto/${proto}
      DEPENDS ${CMAKE_SOURCE_DIR}/proto/${proto}
      COMMENT "protoc-c ${proto}" VERBATIM)
    list(APPEND sources ${out}/${stem}.pb-c.c ${out}/${stem}.pb-c.h)
    list(APPEND protos ${CMAKE_SOURCE_DIR}/proto/${proto})
  endforeach()
  add_custom_command(
    OUTPUT ${out}/${target}.protoset
    COMMAND ${PROTOC} --include_imports -o${out}/${target}.protoset -I${CMAKE_SOURCE_DIR}/proto ${protos}
    DEPENDS ${protos} COMMENT "protoc ${target}.protoset" VERBATIM)
  add_library(${target} STATIC ${sources} ${out}/${target}.protoset)
  # Generated code is not ours to polish.
  target_compile_options(${target} PRIVATE -w)
  target_include_directories(${target} SYSTEM PUBLIC ${out})
  target_link_libraries(${target} PUBLIC PkgConfig::PROTOBUF_C)
endfunction()
