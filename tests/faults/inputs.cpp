// Runs the fuzzed function, for a compiler without libFuzzer: on the files that the command line names, or on as many
// random inputs as it says: COUNT [SEED].
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int main(int argc, char** argv) {
    char* end = nullptr;
    long count = argc > 1 ? std::strtol(argv[1], &end, 10) : 1000;
    if (end && *end) {  // not a number
        count = argc - 1;
        for (int i = 1; i < argc; ++i) {
            std::ifstream file(argv[i], std::ios::binary);
            const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
            LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
        }
    } else {
        std::mt19937_64 random(argc > 2 ? std::atol(argv[2]) : 0);
        for (long i = 0; i < count; ++i) {
            std::vector<uint8_t> bytes(1024);
            for (uint8_t& byte : bytes) byte = uint8_t(random());
            LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
        }
    }
    std::printf("%ld inputs without a finding\n", count);
}
