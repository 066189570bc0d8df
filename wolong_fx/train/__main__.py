"""`python -m wolong_fx.train …`"""

import sys

from wolong_fx.train.main import main

sys.exit(main())
