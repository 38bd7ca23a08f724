// Calls functions of a library on behalf of another process, which may be of another architecture.
//
//   emulated_kernels LIBRARY
//
// First it writes what the processor has: the auxiliary vector's two words of capabilities. Then it
// reads calls from its input and writes their results, all in binary:
//
//   call:   length and letters of a symbol, number of arguments, the arguments
//   argument: 'i' and a whole number, 'f' and a float, 'n' for a null pointer,
//             'm', a size in bytes and the bytes of memory
//   result: the returned number, then the bytes of each memory
//
// Whole numbers are 64 bits wide. Memory ends where a page begins that no one may touch.

#include <dlfcn.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

// Whole numbers and floats are counted apart by ARM's calling convention, and none of the kernels
// has more of them.
constexpr int kIntegers = 18;
using Kernel = int64_t (*)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                           int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                           int64_t, int64_t, float, float);

[[noreturn]] void fail(const std::string& what) {
    std::fprintf(stderr, "emulated_kernels: %s\n", what.c_str());
    std::exit(2);
}

void read(void* to, size_t size) {
    if (std::fread(to, 1, size, stdin) != size) fail("the input ends within a call");
}

template <class T>
T read() {
    T value;
    read(&value, sizeof value);
    return value;
}

struct Memory {
    char* pages;
    size_t length;
    char* data;
    size_t size;

    explicit Memory(size_t size) : size(size) {
        const size_t page = size_t(sysconf(_SC_PAGESIZE));
        const size_t used = (size + page - 1) / page * page;
        length = used + page;
        void* made =
            mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (made == MAP_FAILED) fail("no memory for an argument");
        pages = static_cast<char*>(made);
        if (mprotect(pages + used, page, PROT_NONE)) fail("no page that may not be touched");
        data = pages + used - size;
    }
};

// Reads a call's arguments and makes it. Returns false where the input ends.
bool serve(void* library) {
    int64_t length;
    if (std::fread(&length, 1, sizeof length, stdin) != sizeof length) return false;
    std::string symbol(size_t(length), ' ');
    read(symbol.data(), symbol.size());
    void* function = dlsym(library, symbol.c_str());
    if (!function) fail("there is no " + symbol);
    int64_t integers[kIntegers] = {};
    float floats[2] = {};
    int whole = 0, broken = 0;
    std::vector<Memory> memories;
    for (int64_t left = read<int64_t>(); left > 0; --left) {
        const char kind = read<char>();
        if (kind == 'f' ? broken == 2 : whole == kIntegers) fail("too many arguments");
        if (kind == 'i') {
            integers[whole++] = read<int64_t>();
        } else if (kind == 'f') {
            floats[broken++] = read<float>();
        } else if (kind == 'n') {
            integers[whole++] = 0;
        } else {
            Memory& memory = memories.emplace_back(size_t(read<int64_t>()));
            read(memory.data, memory.size);
            integers[whole++] = reinterpret_cast<int64_t>(memory.data);
        }
    }
    const int64_t* i = integers;
    const int64_t result = reinterpret_cast<Kernel>(function)(
        i[0], i[1], i[2], i[3], i[4], i[5], i[6], i[7], i[8], i[9], i[10], i[11], i[12], i[13],
        i[14], i[15], i[16], i[17], floats[0], floats[1]);
    std::fwrite(&result, sizeof result, 1, stdout);
    for (const Memory& memory : memories) {
        std::fwrite(memory.data, 1, memory.size, stdout);
        munmap(memory.pages, memory.length);
    }
    std::fflush(stdout);
    return true;
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 2) fail("give it a library");
    void* library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
    if (!library) fail(dlerror());
    const uint64_t has[2] = {getauxval(AT_HWCAP), getauxval(AT_HWCAP2)};
    std::fwrite(has, sizeof has, 1, stdout);
    std::fflush(stdout);
    while (serve(library)) {
    }
}
