// The C++ library: exceptions, threads, waits with a time.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <future>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

static int thrown_in_threads() {
    std::vector<std::future<int>> results;
    for (int i = 0; i < 4; i++)
        results.push_back(std::async(std::launch::async, [i]() -> int {
            if (i % 2) throw std::runtime_error(std::to_string(i));
            return i;
        }));
    int sum = 0;
    for (auto &result : results) try {
            sum += result.get();
        } catch (const std::runtime_error &error) {
            sum += 10 * std::stoi(error.what());
        }
    return sum;
}

int main() {
    if (thrown_in_threads() != 42) return 30;
    try {
        std::vector<char> large(size_t{1} << 30);
        return 31;
    } catch (const std::bad_alloc &) {
    }
    std::mutex mutex;
    std::condition_variable changed;
    std::atomic<int> counted{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; i++)
        threads.emplace_back([&] {
            for (int n = 0; n < 1000; n++) counted++;
            std::unique_lock lock(mutex);
            changed.notify_all();
        });
    {
        std::unique_lock lock(mutex);
        if (!changed.wait_for(lock, std::chrono::seconds(10), [&] { return counted == 3000; })) return 32;
    }
    for (auto &thread : threads) thread.join();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    std::puts("library: well");
    return 0;
}
