# shoal_late(TARGET PREFIX library...): an interface library for rooms that open the libraries of a
# pkg-config package when they need them (common/base/late.h) instead of linking them. It brings the
# headers, and PREFIX_LATE_FILES: what the files are called (their sonames), C strings with commas.
function(shoal_late target prefix)
  set(names "")
  foreach(library ${ARGN})
    find_library(late_${library} ${library} HINTS ${${prefix}_LIBRARY_DIRS} REQUIRED)
    execute_process(COMMAND ${CMAKE_OBJDUMP} -p ${late_${library}} OUTPUT_VARIABLE told
      COMMAND_ERROR_IS_FATAL ANY)
    if(NOT told MATCHES "SONAME +([^ \n]+)")
      message(FATAL_ERROR "${late_${library}} has no soname")
    endif()
    string(APPEND names "\"${CMAKE_MATCH_1}\",")
  endforeach()
  add_library(${target} INTERFACE)
  target_include_directories(${target} SYSTEM INTERFACE ${${prefix}_INCLUDE_DIRS})
  target_compile_definitions(${target} INTERFACE "${prefix}_LATE_FILES=${names}")
endfunction()
