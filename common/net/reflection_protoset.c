/* The FileDescriptorSet that protoc wrote for shoal_proto, as bytes of this program: no file is
 * needed at run time, and what is served is what was compiled. The build passes its path. */
__asm__(".section .rodata, \"a\", @progbits\n"
        ".balign 16\n"
        ".global reflection_protoset\n"
        "reflection_protoset:\n"
        ".incbin \"" SHOAL_PROTOSET "\"\n"
        ".global reflection_protoset_end\n"
        "reflection_protoset_end:\n"
        ".byte 0\n"
        ".previous\n");

/* ISO C wants at least one declaration in a file. */
extern const unsigned char reflection_protoset[];
