module rawstreambench

go 1.19
