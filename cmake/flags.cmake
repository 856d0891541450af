# Compiler and linker flags of every translation unit. -ffp-contract=off is a promise, not a taste:
# gcc's gnu17 default fuses separate multiplications and additions, which changes bits between
# kernel versions (docs/numerics.md). Files for one instruction set add their own flags.
find_program(CCACHE ccache)
if(CCACHE)
  set(CMAKE_C_COMPILER_LAUNCHER ${CCACHE})
endif()

if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
set(CMAKE_C_FLAGS_RELEASE "-O2 -g1")
set(CMAKE_C_FLAGS_DEBUG "-O1 -g")

add_compile_options(
  -Wall -Wextra -Wconversion -Wvla -Walloca -Wformat=2 -Wstrict-prototypes -Wmissing-prototypes
  -Wpointer-arith -Wcast-qual -Wwrite-strings -Wno-missing-field-initializers
  -Wno-format-truncation -Werror
  -ffp-contract=off -fno-math-errno -fno-common -fstack-protector-strong -fPIE)
if(CMAKE_C_COMPILER_ID STREQUAL "GNU")
  add_compile_options(-fstack-clash-protection -fcf-protection)
else()
  # clang builds only the fuzz targets; it warns about what gcc's headers and style accept.
  add_compile_options(-Wno-unknown-warning-option -Wno-sign-conversion -Wno-implicit-int-float-conversion -Wno-gnu-folding-constant
    -Wno-string-conversion -Wno-string-concatenation)
endif()
set(version ${PROJECT_VERSION})
if(SHOAL_ONE_LEAF)
  set(version ${PROJECT_VERSION}-one-leaf)
endif()
add_compile_definitions(_GNU_SOURCE SHOAL_VERSION="${version}")
if(SHOAL_SANITIZE)
  add_compile_options(-fsanitize=${SHOAL_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${SHOAL_SANITIZE})
  if(SHOAL_FUZZ)
    add_compile_options(-fsanitize=fuzzer-no-link)
  endif()
else()
  add_compile_options($<$<CONFIG:Release>:-D_FORTIFY_SOURCE=2> -ftrivial-auto-var-init=zero)
endif()
add_link_options(-pie -Wl,-z,relro,-z,now,-z,noexecstack -Wl,--as-needed)
include_directories(${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR}/generated)
