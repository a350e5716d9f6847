// Runs the fuzzed function on as many random inputs as the command line says, for a compiler without libFuzzer.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int main(int argc, char** argv) {
    const long count = argc > 1 ? std::atol(argv[1]) : 1000;
    std::mt19937_64 random(argc > 2 ? std::atol(argv[2]) : 0);
    std::vector<uint8_t> bytes(256);
    for (long i = 0; i < count; ++i) {
        for (uint8_t& byte : bytes) byte = uint8_t(random());
        LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    }
    std::printf("%ld inputs without a finding\n", count);
}
