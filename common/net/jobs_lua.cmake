# Embeds the job library in the binary: jobs.lua and jobs_whole.lua joined, as one array of bytes.
# The joining happens at configure time, which is repeated whenever one of the two changes.
set(JOBS_LUA_OUT ${CMAKE_BINARY_DIR}/generated/common/net/jobs_lua.c)
set(JOBS_LUA_HEX "")
foreach(part jobs.lua jobs_whole.lua)
  set(path ${CMAKE_CURRENT_LIST_DIR}/${part})
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${path})
  file(READ ${path} hex HEX)
  string(APPEND JOBS_LUA_HEX ${hex})
endforeach()
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," JOBS_LUA_BYTES "${JOBS_LUA_HEX}")
string(CONCAT JOBS_LUA_TEXT
  "#include <stddef.h>\n"
  "extern const unsigned char jobs_lua[];\nextern const size_t jobs_lua_bytes;\n"
  "const unsigned char jobs_lua[] = {${JOBS_LUA_BYTES}0};\n"
  "const size_t jobs_lua_bytes = sizeof jobs_lua - 1;\n")
file(CONFIGURE OUTPUT ${JOBS_LUA_OUT} CONTENT "${JOBS_LUA_TEXT}" @ONLY)
add_library(shoal_jobs_lua STATIC ${JOBS_LUA_OUT})
# Deferred, so that this file may be included before or after the library is defined.
cmake_language(DEFER CALL target_link_libraries shoal_net PUBLIC shoal_jobs_lua PkgConfig::HIREDIS)
